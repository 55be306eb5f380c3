"""Closed formulas for the traffic of every method, in bytes.

They are what the ledger is held to: a run's ledger must equal them exactly, kind by kind, but for
the envelope, which is whatever the encoding adds. Sizes are in elements unless a name says bytes;
the wire carries float32 (4 bytes), int64 labels (8 bytes), uint32 seeds (4 bytes) and masks of
one byte a position. B D_z and B labels stand for all positions where samples are sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from leansplit.wire.kinds import Direction, Kind

FLOAT_BYTES = 4
LABEL_BYTES = 8
SEED_BYTES = 4

Traffic = dict[tuple[Direction, Kind], int]


@dataclass(frozen=True, kw_only=True)
class SplitShape:
    """Sizes that traffic depends on."""

    smashed_elements: int
    """D_z, elements of smashed data for each sample, or for each position of sequences."""
    smashed_bytes: int = FLOAT_BYTES
    """Bytes of an element of smashed data: 4, or 2 in half precision."""
    labels_per_sample: int = 1
    """Labels for each sample: 1 for classes, S where each of S positions has one; 0 where sequences
    have a label for each of ``num_positions``."""
    num_positions: int = 0
    """Positions of all uploaded batches of sequences, padding included; 0 = no sequences."""
    client_elements: int = 0
    """d_c, trainable parameters of the client model."""
    auxiliary_elements: int = 0
    """d_a, trainable parameters of the auxiliary head."""
    full_elements: int = 0
    """d, trainable parameters of the whole model."""
    client_samples: Mapping[int, int] = field(default_factory=dict)
    """Client id -> samples that it holds, for methods that upload all of them."""
    zeroth_elements: tuple[int, ...] = ()
    """d_i, parameters that client i trains by zeroth-order steps, of clients 0, 1, ...; only for
    methods whose clients differ in it."""

    def uploads(self, num_samples: int, *, activations: int = 1, masks: int = 1) -> Traffic:
        """Return the bytes of smashed data, labels and attention masks.

        Args:
            num_samples: samples whose smashed data go up.
            activations: smashed data for each sample.
            masks: of them, those that carry a mask; the others share one.
        """
        smashed = (self.num_positions or num_samples) * self.smashed_elements * self.smashed_bytes
        labels = num_samples * self.labels_per_sample or self.num_positions
        return {
            ("uplink", "smashed_data"): activations * smashed,
            ("uplink", "labels"): labels * LABEL_BYTES,
            ("uplink", "masks"): masks * self.num_positions,
        }


def splitfed_traffic(
    shape: SplitShape, attendance: Sequence[Set[int]], num_samples: int
) -> Traffic:
    """SFLV1 and SFLV2: 2 B D_z floats a step, client weights both ways each participation."""
    participations = sum(len(cohort) for cohort in attendance)
    weights = participations * shape.client_elements * FLOAT_BYTES
    uploads = shape.uploads(num_samples)
    return without_zeros(
        uploads
        | {
            ("downlink", "smashed_gradient"): uploads["uplink", "smashed_data"],
            ("downlink", "weights"): weights,
            ("uplink", "weights"): weights,
        }
    )


def fedavg_traffic(shape: SplitShape, attendance: Sequence[Set[int]]) -> Traffic:
    """FedAvg: the whole model both ways at each participation, nothing else."""
    participations = sum(len(cohort) for cohort in attendance)
    weights = participations * shape.full_elements * FLOAT_BYTES
    return {("downlink", "weights"): weights, ("uplink", "weights"): weights}


def fedzo_traffic(shape: SplitShape, attendance: Sequence[Set[int]]) -> Traffic:
    """FedZO: the whole model both ways at each participation, nothing else."""
    return without_zeros(fedavg_traffic(shape, attendance))


def frozen_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
    *,
    features_once: bool = False,
) -> Traffic:
    """Frozen client: smashed data and labels up; the client model down once for each client.

    With ``features_once`` each participant uploads all the samples it holds, once, however many
    the server processes.
    """
    participants = set().union(*attendance)
    if features_once:
        num_samples = sum(shape.client_samples[m] for m in participants)
    return without_zeros(
        shape.uploads(num_samples)
        | {
            ("downlink", "weights"): len(participants) * shape.client_elements * FLOAT_BYTES,
        }
    )


def without_zeros(traffic: Traffic) -> Traffic:
    """Return the kinds that occur."""
    return {key: value for key, value in traffic.items() if value}
