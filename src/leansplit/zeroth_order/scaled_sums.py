"""Sums of scaled directions, with one rounding for each product and each sum."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_ZERO: Final = torch.zeros(())
_SAFE: Final = 1e-20
"""No direction has values so small that this many times them would round to nothing."""


def begin_sum_(total: Tensor, factor: float, direction: Tensor) -> None:
    """Write 0 + factor * direction over ``total``, in one pass instead of three.

    The bits are those of ``total.zero_().add_(factor * direction)``. A fused product and sum has
    one rounding, but to add to zero takes none, and makes +0 of -0 either way; products that
    could underflow, for which this does not hold, are rounded first.

    Args:
        total: float32 of any shape; what it holds is lost.
        factor: what the direction is multiplied by.
        direction: float32 of that shape.
    """
    if factor == 0 or abs(factor) > _SAFE:
        torch.add(_ZERO, direction, alpha=factor, out=total)
    else:
        total.zero_().add_(factor * direction)
