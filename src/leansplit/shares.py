"""Shares of a number of clients, by the decimal that was written and not by its binary neighbour.

In floats 0.07 * 100 is above 7 and 0.29 * 100 below 29: rounded up or down, they come to a client
too many or too few.
"""

from __future__ import annotations

import math
from fractions import Fraction


def at_least(share: float, count: int) -> int:
    """Return the fewest of ``count`` that are the share or more."""
    return math.ceil(_of(share, count))


def at_most(share: float, count: int) -> int:
    """Return the most of ``count`` that are the share or less."""
    return math.floor(_of(share, count))


def _of(share: float, count: int) -> Fraction:
    return Fraction(str(share)) * count
