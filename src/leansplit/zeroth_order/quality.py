"""How good a zeroth-order estimate is: measured against a known gradient, and what to expect.

A single direction gives the estimate g_p = s_p u_p with the slope s_p = v_p / mu (forward) or
v_p / (2 mu) (central); the estimate is their mean g_hat = 1/P sum_p g_p, shape [d]. Against the
true gradient g:

    cosine             <g_hat, g> / (|g_hat| |g|)
    norm ratio         |g_hat| / |g|
    projection         <g_hat, g> / |g|^2, of mean 1 if the estimate is unbiased
    relative variance  1/(P (P - 1)) sum_p |g_p - g_hat|^2 / |g|^2, which estimates
                       E|g_hat - E g_hat|^2 / |g|^2 from one round's directions

For an exact linear probe, s_p = <g, u_p>, and Gaussian directions the law of all this is known.
Split u_p into its part a_p along g and the rest: A = sum_p a_p^2 is chi-squared with P degrees of
freedom, and given the a_p the part of g_hat across g is Gaussian with B = |.|^2 P^2 / (A |g|^2)
chi-squared with d - 1. Hence

    cosine^2 = A / (A + B) ~ Beta(P/2, (d-1)/2),    E[cosine^2] = P / (P + d - 1),
    projection = A / P,                             mean 1, variance 2/P,
    norm ratio = cosine (A + B) / P,                E[norm ratio^2] = (d + P + 1) / P,

and the cosine is independent of A + B. Nothing but P and d enters: neither the network, nor the
data, nor where in training the probe is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from leansplit.errors import UserError
from leansplit.noise import Direction

_EXTRA_VARIANCE: Final[dict[str, int]] = {
    "gaussian": 1,
    "rademacher": -1,
    "sphere": -1,
    "unit_sphere": -1,
}
# E|u|^2 <g,u>^2 = (d + 2)|g|^2 for Gaussian directions, d |g|^2 where |u|^2 = d always.


@dataclass(frozen=True)
class EstimateQuality:
    """An estimate against the true gradient; see the module's formulas.

    Attributes:
        cosine: NaN if either vector is zero.
        norm_ratio: NaN if the true gradient is zero.
        relative_variance: NaN for a single direction, or if the true gradient is zero.
        true_norm: |g|, in units of loss per unit of parameter.
        num_elements: d.
        num_directions: P, of all who contributed.
    """

    cosine: float
    norm_ratio: float
    relative_variance: float
    true_norm: float
    num_elements: int
    num_directions: int

    @property
    def projection(self) -> float:
        """<g_hat, g> / |g|^2: how much of the true gradient the estimate carries."""
        return self.cosine * self.norm_ratio


class EstimateSum:
    """Single-direction estimates summed up in float64, one direction at a time.

    Attributes:
        num_directions: how many were added.
    """

    def __init__(self, num_elements: int, device: torch.device | str = "cpu") -> None:
        self.num_directions = 0
        self._sum = torch.zeros(num_elements, dtype=torch.float64, device=device)
        self._squared_norms = 0.0

    def add_(self, slope: float, direction: Tensor) -> None:
        """Add g_p = ``slope`` times ``direction`` [d]."""
        wide = direction.double()
        self._sum.add_(wide, alpha=slope)
        self._squared_norms += slope**2 * float(wide.dot(wide))
        self.num_directions += 1

    @property
    def mean(self) -> Tensor:
        """g_hat, float64 of shape [d]."""
        return self._sum / max(self.num_directions, 1)

    @property
    def variance_of_mean(self) -> float:
        """1/(P (P - 1)) sum_p |g_p - g_hat|^2; NaN for fewer than two directions."""
        p = self.num_directions
        if p < 2:
            return math.nan
        spread = self._squared_norms - float(self._sum.dot(self._sum)) / p
        return max(spread, 0.0) / (p * (p - 1))


def quality_of(
    estimate: Tensor, true_gradient: Tensor, *, variance: float, num_directions: int
) -> EstimateQuality:
    """Compare an estimate with the true gradient, both of shape [d], in float64.

    Args:
        estimate: g_hat.
        true_gradient: g.
        variance: of the estimate over its directions, such as
            :attr:`EstimateSum.variance_of_mean`.
        num_directions: P.

    Raises:
        ValueError: if the shapes differ.
    """
    if estimate.shape != true_gradient.shape:
        raise ValueError(
            f"the estimate has shape {tuple(estimate.shape)}, the gradient "
            f"{tuple(true_gradient.shape)}"
        )
    found, true = estimate.double(), true_gradient.double()
    found_norm, true_norm = float(found.norm()), float(true.norm())
    has_true = true_norm > 0
    return EstimateQuality(
        cosine=float((found / found_norm).dot(true / true_norm))
        if has_true and found_norm > 0
        else math.nan,
        norm_ratio=found_norm / true_norm if has_true else math.nan,
        relative_variance=variance / true_norm / true_norm if has_true else math.nan,
        true_norm=true_norm,
        num_elements=true.numel(),
        num_directions=num_directions,
    )


def expected_squared_cosine(num_elements: int, num_directions: int) -> float:
    """Return E[cosine^2] = P / (P + d - 1) of Gaussian directions and a linear probe."""
    _require_sizes(num_elements, num_directions)
    return num_directions / (num_directions + num_elements - 1)


def expected_cosine(num_elements: int, num_directions: int) -> float:
    """Return E[cosine], the mean of the square root of Beta(P/2, (d-1)/2).

    Gamma((P+1)/2) Gamma((P+d-1)/2) / (Gamma(P/2) Gamma((P+d)/2)), close to sqrt(P / (P + d)).
    Exact for Gaussian directions and a linear probe, and for one direction on the sphere; close
    for the other distributions when d is large.

    Example:
        >>> round(expected_cosine(5088, 5), 3)
        0.03
    """
    _require_sizes(num_elements, num_directions)
    p, d = num_directions, num_elements
    return math.exp(
        math.lgamma((p + 1) / 2)
        - math.lgamma(p / 2)
        + math.lgamma((p + d - 1) / 2)
        - math.lgamma((p + d) / 2)
    )


def expected_norm_ratio(num_elements: int, num_directions: int) -> float:
    """Return E[|g_hat| / |g|] = E[cosine] (P + d - 1) / P of Gaussian directions, linear probe."""
    p, d = num_directions, num_elements
    return expected_cosine(d, p) * (p + d - 1) / p


def expected_relative_variance(
    num_elements: int, num_directions: int, direction: Direction = "gaussian"
) -> float:
    """Return E|g_hat - g|^2 / |g|^2 of a linear probe.

    (d + 1) / P for Gaussian directions, (d - 1) / P for those of a fixed length. One
    more gives E[norm ratio^2].
    """
    _require_sizes(num_elements, num_directions)
    return (num_elements + _EXTRA_VARIANCE[direction]) / num_directions


def _require_sizes(num_elements: int, num_directions: int) -> None:
    if num_elements < 1 or num_directions < 1:
        raise UserError(
            f"d and P must be at least 1, got d = {num_elements} and P = {num_directions}"
        )
