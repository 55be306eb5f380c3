"""Closed formulas for the traffic of the methods with auxiliary heads, in bytes."""

from __future__ import annotations

from collections.abc import Sequence, Set

from leansplit.costs.communication import (
    FLOAT_BYTES,
    SplitShape,
    Traffic,
    without_zeros,
)


def local_loss_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
    *,
    local_steps: int,
    upload_period: int,
    frozen_client: bool = False,
) -> Traffic:
    """CSE-FSL (arXiv 2507.15816) and HERON-SFL (arXiv 2601.09076).

    For each participation: theta_c and theta_a both ways, and ceil(h / k) of its h batches up,
    B D_z floats and B labels each. No gradient, no scalar, no seed crosses.

    Args:
        shape: sizes.
        attendance: the clients that took part, for each round.
        num_samples: samples that clients processed in all.
        local_steps: h.
        upload_period: k.
        frozen_client: theta_c crosses once for each client that took part, and never goes up.
    """
    participations = sum(len(cohort) for cohort in attendance)
    heads = participations * shape.auxiliary_elements
    bodies_up = bodies_down = participations * shape.client_elements
    if frozen_client:
        bodies_up, bodies_down = 0, len(set().union(*attendance)) * shape.client_elements
    return without_zeros(
        _uploads(shape, num_samples, local_steps, upload_period)
        | {
            ("downlink", "weights"): (bodies_down + heads) * FLOAT_BYTES,
            ("uplink", "weights"): (bodies_up + heads) * FLOAT_BYTES,
        }
    )


def fsl_sage_traffic(
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
    *,
    local_steps: int,
    upload_period: int,
    alignment_period: int,
) -> Traffic:
    """FSL-SAGE (arXiv 2505.23182): theta_c both ways, theta_a down only, and only when it changed.

    A client is sent theta_a at its first participation, at its second (the first at which the
    server holds data of it), and then whenever ``alignment_period`` rounds have passed since.

    Args:
        shape: sizes.
        attendance: the clients that took part, for each round, in order.
        num_samples: samples that clients processed in all.
        local_steps: h.
        upload_period: k.
        alignment_period: l.
    """
    sent_in: dict[int, int | None] = {}  # None: sent, but never aligned
    num_heads = 0
    for round, cohort in enumerate(attendance, start=1):
        for m in cohort:
            last = sent_in.get(m)
            if m not in sent_in:
                sent_in[m] = None
            elif last is None or round - last >= alignment_period:
                sent_in[m] = round
            else:
                continue
            num_heads += 1
    participations = sum(len(cohort) for cohort in attendance)
    weights = participations * shape.client_elements * FLOAT_BYTES
    heads = num_heads * shape.auxiliary_elements * FLOAT_BYTES
    return without_zeros(
        _uploads(shape, num_samples, local_steps, upload_period)
        | {("downlink", "weights"): weights + heads, ("uplink", "weights"): weights}
    )


def _uploads(shape: SplitShape, num_samples: int, local_steps: int, upload_period: int) -> Traffic:
    """Return what smashed data and labels take; all batches of a client have one size."""
    uploaded = num_samples // local_steps * -(-local_steps // upload_period)
    return shape.uploads(uploaded)
