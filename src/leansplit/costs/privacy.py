"""What noise buys: epsilon at a given delta for releases by the Gaussian mechanism.

Uses Google's dp-accounting library, of the optional extra ``privacy``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable

from leansplit.errors import UserError

REPLACEMENT = 2.0
"""Sensitivity of a clipped row, in units of its clip, when any row may take its place."""


def can_account() -> bool:
    """Say whether the accounting library is there."""
    return importlib.util.find_spec("dp_accounting") is not None


def epsilon_spent(releases: Iterable[tuple[float, int]], delta: float) -> float:
    """Return epsilon of clipped and noised rows, if one of them is replaced in all releases.

    Releases by Gaussian mechanisms, each chosen in the light of those before, are together exactly
    one with mu^2 = sum T (2 / sigma)^2 (Dong, Roth and Su, JRSS B 2022); its epsilon is that of
    Balle and Wang (ICML 2018). Nothing is gained from sampling: cohorts and batches are known.

    Args:
        releases: (sigma, T): noise multiplier relative to the clip, and how often a row of the
            same sample or client was released; sigma = 0 protects nothing.
        delta: in (0, 1).

    Returns:
        epsilon, at least 0; infinite without noise.

    Raises:
        UserError: if the library is not installed.
    """
    if not can_account():
        raise UserError(
            "epsilon is computed by the dp-accounting library, which is not installed; "
            "pip install 'leansplit[privacy]'"
        )
    from dp_accounting import get_epsilon_gaussian

    squared = 0.0
    for sigma, times in releases:
        if times:
            mu = REPLACEMENT / sigma if sigma else math.inf
            squared += times * (mu * mu)  # beyond floats infinite, where ** would raise
    if not math.isfinite(squared):
        return math.inf
    return float(get_epsilon_gaussian(1 / math.sqrt(squared), delta)) if squared else 0.0
