"""Sums of scaled directions, with one rounding for each product and each sum."""

from __future__ import annotations

import torch
from torch import Tensor


def begin_sum_(total: Tensor, factor: float, direction: Tensor) -> None:
    """Write 0 + factor * direction over ``total``, in place of a pass of zeros and a sum.

    The bits are those of ``total.zero_().add_(factor * direction)``: to add zero rounds nothing,
    and makes +0 of -0.

    Args:
        total: float32 of any shape; what it holds is lost.
        factor: what the direction is multiplied by.
        direction: float32 of that shape.
    """
    assert total.shape == direction.shape  # `out` would be made larger, over what lies behind it
    torch.mul(direction, factor, out=total).add_(0.0)
