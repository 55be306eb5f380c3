"""Is a difference more than chance? Two rows of a comparison, paired over their common seeds.

A seed fixes the initial weights, the partition and the cohorts, so two methods of one seed share
much of their luck: what is tested are the differences within seeds. The primary test is the paired
t-test, because it belongs to the interval that is reported and can answer from three seeds on. It
takes the differences to be roughly normal. The exact sign-flip test takes nothing of the kind, but
cannot go below 2 / 2^n: 0.25 for three seeds, 0.0625 for five. It is given beside the first.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

MIN_COMMON_SEEDS = 3
_CONFIDENCE = 0.95
_MAX_EXACT_SEEDS = 16  # 65,536 sign patterns
_ROUNDING = 1e-12  # relative; sums of the same numbers in another order differ by less


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The mean difference of two methods over their common seeds; None where nothing can be said.

    Below three common seeds only the mean is given. Differences that are the same on every seed
    have no spread to judge chance by, so there is neither an interval nor a p of the t-test.
    """

    num_seeds: int | None
    """None: there is nothing to compare with."""
    mean: float | None = None
    low: float | None = None
    """Lower end of the 95 % interval of the mean (Student's t)."""
    high: float | None = None
    p_value: float | None = None
    """Two-sided, paired t-test."""
    sign_flip_p_value: float | None = None
    """Two-sided, exact: the share of all 2^n sign patterns whose mean is at least as far from 0."""


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> PairedDifference:
    """Compare two methods, each given as seed -> value, on the seeds that both have."""
    seeds = sorted(values.keys() & reference.keys())
    differences = [values[seed] - reference[seed] for seed in seeds]
    num = len(differences)
    mean = statistics.fmean(differences) if differences else None
    if mean is None or num < MIN_COMMON_SEEDS:
        return PairedDifference(num_seeds=num, mean=mean)
    flips = _sign_flip_p_value(differences)
    scale = max(map(abs, differences))
    error = statistics.stdev(differences) / math.sqrt(num)
    if error <= _ROUNDING * scale:
        return PairedDifference(num_seeds=num, mean=mean, sign_flip_p_value=flips)

    from scipy import stats

    half_width = float(stats.t.ppf((1 + _CONFIDENCE) / 2, num - 1)) * error
    return PairedDifference(
        num_seeds=num,
        mean=mean,
        low=mean - half_width,
        high=mean + half_width,
        p_value=float(2 * stats.t.sf(abs(mean) / error, num - 1)),
        sign_flip_p_value=flips,
    )


def _sign_flip_p_value(differences: list[float]) -> float | None:
    if len(differences) > _MAX_EXACT_SEEDS:
        return None
    observed = abs(math.fsum(differences))
    observed -= _ROUNDING * math.fsum(map(abs, differences))
    patterns = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(math.fsum(s * d for s, d in zip(p, differences, strict=True))) for p in patterns]
    return sum(total >= observed for total in sums) / len(sums)
