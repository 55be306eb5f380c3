"""Closed formula for the traffic of HO-FL."""

from __future__ import annotations

from collections.abc import Sequence, Set

from leansplit.costs.communication import (
    FLOAT_BYTES,
    SEED_BYTES,
    SplitShape,
    Traffic,
    without_zeros,
)


def ho_fl_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    local_steps: int,
    num_perturbations: int,
) -> Traffic:
    """HO-FL: for each participation of client i the whole model down, d - d_i parameters up.

    A client with a zeroth-order segment also gets E q seeds and sends E q scalars; that is what its
    d_i parameters cost on the way up.

    Args:
        shape: sizes, among them every client's d_i (``zeroth_elements``).
        attendance: the clients that took part, for each round.
        local_steps: E.
        num_perturbations: q.
    """
    dimensions = [shape.zeroth_elements[m] for cohort in attendance for m in cohort]
    num_seeds = sum(1 for d in dimensions if d) * local_steps * num_perturbations
    above = sum(shape.full_elements - d for d in dimensions)
    return without_zeros(
        {
            ("downlink", "weights"): len(dimensions) * shape.full_elements * FLOAT_BYTES,
            ("downlink", "seeds"): num_seeds * SEED_BYTES,
            ("uplink", "scalars"): num_seeds * FLOAT_BYTES,
            ("uplink", "weights"): above * FLOAT_BYTES,
        }
    )
