"""Closed formulas for the traffic of HOSL, DeComFL and FedZO; see :mod:`.communication`."""

from __future__ import annotations

from collections.abc import Sequence, Set

from leansplit.costs.communication import (
    FLOAT_BYTES,
    SEED_BYTES,
    SplitShape,
    Traffic,
    without_zeros,
)


def hosl_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
    num_perturbations: int,
    probes_per_direction: int,
) -> Traffic:
    """HOSL (arXiv 2601.10940), and HO-SFL that probes ahead: the same messages.

    Initial weights and the final synchronisation are included.

    For each participation: B (1 + c P) D_z floats and B labels up, P seeds down; nothing comes
    back but P mean scalars with the next request. Catch-up and weights as in HO-SFL.

    Args:
        shape: sizes.
        attendance: the clients that took part, for each round.
        num_samples: samples processed in all.
        num_perturbations: P, the paper's Q.
        probes_per_direction: c, perturbed smashed data of each direction: 1 or 2.
    """
    uploads = 1 + probes_per_direction * num_perturbations
    up = shape.uploads(num_samples, activations=uploads, masks=1 + probes_per_direction)
    return without_zeros(up | _replay_traffic(attendance, num_perturbations, shape.client_elements))


def decomfl_traffic(
    shape: SplitShape, attendance: Sequence[Set[int]], num_perturbations: int, local_steps: int
) -> Traffic:
    """DeComFL (ICLR 2025), with initial weights and a final synchronisation.

    For each participation: h P seeds down, h P scalars up, and h P mean scalars down with the next
    request; seeds and scalars (8 h P bytes) of every round missed; the whole model once for each
    client that ever took part.

    Args:
        shape: sizes.
        attendance: the clients that took part, for each round.
        num_perturbations: P.
        local_steps: h.
    """
    per_round = num_perturbations * local_steps
    participations = sum(len(cohort) for cohort in attendance)
    up: Traffic = {("uplink", "scalars"): participations * per_round * FLOAT_BYTES}
    return without_zeros(up | _replay_traffic(attendance, per_round, shape.full_elements))


def fedzo_traffic(shape: SplitShape, attendance: Sequence[Set[int]]) -> Traffic:
    """FedZO: the whole model both ways at each participation, nothing else."""
    participations = sum(len(cohort) for cohort in attendance)
    weights = participations * shape.full_elements * FLOAT_BYTES
    return without_zeros({("downlink", "weights"): weights, ("uplink", "weights"): weights})


def _replay_traffic(
    attendance: Sequence[Set[int]], scalars_per_round: int, num_elements: int
) -> Traffic:
    """Return what keeps replicas of ``num_elements`` weights up to date: all of it comes down."""
    participants = set().union(*attendance)
    participations = sum(len(cohort) for cohort in attendance)
    missed = len(participants) * sum(map(bool, attendance)) - participations
    return {
        ("downlink", "seeds"): participations * scalars_per_round * SEED_BYTES,
        ("downlink", "scalars"): participations * scalars_per_round * FLOAT_BYTES,
        ("downlink", "catch_up"): missed * scalars_per_round * (SEED_BYTES + FLOAT_BYTES),
        ("downlink", "weights"): len(participants) * num_elements * FLOAT_BYTES,
    }
