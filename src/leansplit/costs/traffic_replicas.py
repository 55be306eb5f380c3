"""Closed formulas for the traffic of methods whose clients hold replicas of one model.

Those of HO-SFL, HOSL and DeComFL; see :mod:`.communication`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from leansplit.costs.communication import (
    FLOAT_BYTES,
    SEED_BYTES,
    SplitShape,
    Traffic,
    without_zeros,
)
from leansplit.federated import CatchUp


@dataclass(frozen=True, kw_only=True)
class CatchUpSizes:
    """What a client that missed rounds is sent (docs/catch-up.md)."""

    choice: CatchUp = "log"
    """How it is chosen."""
    seed_bytes: int = SEED_BYTES
    """Of a direction in the log, beside its scalar: a seed, or its place in a pool."""
    moment_bytes: int = 0
    """Of the moments that a snapshot carries beside the weights."""


def replica_traffic(
    attendance: Sequence[Set[int]],
    scalars_per_round: int,
    num_elements: int,
    catch_up: CatchUpSizes = CatchUpSizes(),
) -> Traffic:
    """Return what keeps replicas of ``num_elements`` weights up to date: all of it comes down.

    For each participation P seeds. At the next, or in the final synchronisation, P mean scalars
    and ``seed_bytes + 4`` for each direction of the rounds missed, or a snapshot in place of both.
    A first participation takes the initial weights and all rounds before, or a snapshot.
    """
    weights_bytes = num_elements * FLOAT_BYTES
    snapshot_bytes = weights_bytes + catch_up.moment_bytes
    a_round = scalars_per_round * (catch_up.seed_bytes + FLOAT_BYTES)
    sent = {"scalars": 0, "catch_up": 0, "weights": 0}
    last: dict[int, int] = {}  # client id -> updates before the round in which it last took part
    num_updates = 0

    def bring_up_to_date(m: int) -> None:
        is_new = m not in last
        missed = num_updates - (0 if is_new else last[m] + 1)
        by_log = {
            "scalars": 0 if is_new else scalars_per_round * FLOAT_BYTES,
            "catch_up": missed * a_round,
            "weights": weights_bytes if is_new else 0,
        }
        if catch_up.choice == "auto":
            is_dearer = sum(by_log.values()) > snapshot_bytes
        else:
            is_dearer = catch_up.choice == "snapshot" and missed > 0
        for kind, size in ({"weights": snapshot_bytes} if is_dearer else by_log).items():
            sent[kind] += size

    for cohort in attendance:
        for m in cohort:
            bring_up_to_date(m)
            last[m] = num_updates
        num_updates += bool(cohort)
    for m in last:
        bring_up_to_date(m)
    return {
        ("downlink", "seeds"): sum(map(len, attendance)) * scalars_per_round * SEED_BYTES,
        ("downlink", "scalars"): sent["scalars"],
        ("downlink", "catch_up"): sent["catch_up"],
        ("downlink", "weights"): sent["weights"],
    }


def ho_sfl_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
    num_perturbations: int,
    catch_up: CatchUpSizes = CatchUpSizes(),
) -> Traffic:
    """HO-SFL (algorithms of arXiv 2603.14773), with initial weights and a final synchronisation.

    For each participation: B D_z floats and B labels up, B D_z floats and P seeds down, P scalars
    up; and what :func:`replica_traffic` says. By the log, seeds, scalars and catch-up come to 8 P
    bytes down for each round and client that ever took part.

    Args:
        shape: sizes.
        attendance: the clients that took part, for each round.
        num_samples: samples processed in all.
        num_perturbations: P.
        catch_up: what clients that missed rounds are sent.
    """
    uploads = shape.uploads(num_samples)
    scalars = sum(map(len, attendance)) * num_perturbations * FLOAT_BYTES
    down = replica_traffic(attendance, num_perturbations, shape.client_elements, catch_up)
    return without_zeros(
        uploads
        | down
        | {
            ("downlink", "smashed_gradient"): uploads["uplink", "smashed_data"],
            ("uplink", "scalars"): scalars,
        }
    )


def hosl_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
    num_perturbations: int,
    probes_per_direction: int,
    catch_up: CatchUpSizes = CatchUpSizes(),
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
        catch_up: what clients that missed rounds are sent.
    """
    uploads = 1 + probes_per_direction * num_perturbations
    up = shape.uploads(num_samples, activations=uploads, masks=1 + probes_per_direction)
    down = replica_traffic(attendance, num_perturbations, shape.client_elements, catch_up)
    return without_zeros(up | down)


def decomfl_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_perturbations: int,
    local_steps: int,
    catch_up: CatchUpSizes = CatchUpSizes(),
) -> Traffic:
    """DeComFL (ICLR 2025), with initial weights and a final synchronisation.

    For each participation: h P seeds down, h P scalars up, and h P mean scalars down with the next
    request; catch-up and weights as in HO-SFL, of the whole model.

    Args:
        shape: sizes.
        attendance: the clients that took part, for each round.
        num_perturbations: P.
        local_steps: h.
        catch_up: what clients that missed rounds are sent.
    """
    per_round = num_perturbations * local_steps
    scalars = sum(map(len, attendance)) * per_round * FLOAT_BYTES
    down = replica_traffic(attendance, per_round, shape.full_elements, catch_up)
    return without_zeros({("uplink", "scalars"): scalars, **down})
