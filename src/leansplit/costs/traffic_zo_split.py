"""Closed formulas for the traffic of MU-SplitFed and ZO-SFL, in bytes."""

from __future__ import annotations

from collections.abc import Sequence, Set

from leansplit.costs.communication import (
    FLOAT_BYTES,
    SplitShape,
    Traffic,
    without_zeros,
)


def zo_split_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
    *,
    num_perturbations: int,
    num_activations: int,
    local_steps: int,
) -> Traffic:
    """MU-SplitFed and ZO-SFL: no gradient, no seeds, client weights both ways.

    For each step of a client: A B D_z floats and B labels up, P scalars down. A is 2 P + 1
    (MU-SplitFed, central), 2 P (ZO-SFL, central) or P + 1 (both, forward). The server's own
    steps, however many, cost no traffic.

    Args:
        shape: sizes.
        attendance: the clients that took part, for each round.
        num_samples: samples processed in all; each counts once, whatever A is.
        num_perturbations: P.
        num_activations: A, smashed data uploaded for each sample.
        local_steps: h.
    """
    participations = sum(len(cohort) for cohort in attendance)
    weights = participations * shape.client_elements * FLOAT_BYTES
    # Unperturbed, plus and minus: all P of one kind have the same mask.
    masks = num_activations // num_perturbations + num_activations % num_perturbations
    return without_zeros(
        shape.uploads(num_samples, activations=num_activations, masks=masks)
        | {
            ("downlink", "scalars"): participations * local_steps * num_perturbations * FLOAT_BYTES,
            ("downlink", "weights"): weights,
            ("uplink", "weights"): weights,
        }
    )
