"""Dependent rounding: a random set of exact size with prescribed inclusion probabilities.

Pairwise scheme of Gandhi, Khuller, Parthasarathy and Srinivasan ("Dependent rounding and its
applications to approximation algorithms", J. ACM 2006). Two fractional entries x and y trade mass
until one of them is 0 or 1, in the direction that keeps both expectations:

    a = min(1 - x, y),  b = min(x, 1 - y)
    (x, y) <- (x + a, y - a) with probability b / (a + b), else (x - b, y + b)

The sum never changes, so the set has exactly ``sum(x)`` members, and members are negatively
correlated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leansplit.errors import UserError

_TOLERANCE = 1e-9  # what a sum of many probabilities may be off by


def dependent_rounding(
    probabilities: Sequence[float], generator: np.random.Generator
) -> tuple[int, ...]:
    """Draw a set of indices in which index i occurs with probability ``probabilities[i]``.

    Entries trade in the order of a permutation drawn first, so that equal probabilities give
    every set of the right size the same chance.

    Args:
        probabilities: each in [0, 1]; their sum is a whole number.
        generator: the only source of randomness.

    Returns:
        The chosen indices, ascending; exactly ``sum(probabilities)`` of them.

    Raises:
        UserError: if an entry is outside [0, 1], or the sum is not whole.
    """
    total = float(sum(probabilities))
    are_chances = all(0 <= x <= 1 for x in probabilities)
    size = round(total) if are_chances else 0
    if not are_chances or abs(total - size) > _TOLERANCE:
        raise UserError(
            f"inclusion probabilities must lie in [0, 1] and sum to a whole number, got the sum "
            f"{total!r} over {len(probabilities)} entries"
        )
    chosen: list[int] = []
    open_index, x = -1, 0.0  # the one entry that is not settled yet
    for index in generator.permutation(len(probabilities)).tolist():
        y = float(probabilities[index])
        if open_index < 0:
            open_index, x = index, y
        elif _TOLERANCE < x < 1 - _TOLERANCE:
            up, down = min(1 - x, y), min(x, 1 - y)
            # A sure y has nothing to trade: then one of the two moves is empty and drawn for sure.
            if generator.random() * (up + down) < down:
                x, y = x + up, y - up
            else:
                x, y = x - down, y + down
            if _TOLERANCE < x < 1 - _TOLERANCE:  # then y is settled and x goes on
                chosen += [index] if y > 0.5 else []
                continue
        if open_index != index:
            chosen += [open_index] if x > 0.5 else []
            open_index, x = index, y
    if open_index >= 0 and len(chosen) < size:
        chosen.append(open_index)  # a whole sum leaves it at 0 or 1, up to rounding
    return tuple(sorted(chosen))
