"""Measured quality of estimates against what theory says of Gaussian directions."""

import math

import pytest
import torch
from scipy import stats

from leansplit.errors import UserError
from leansplit.noise import DIRECTIONS, draw_perturbation, second_moment_inverse
from leansplit.zeroth_order import (
    EstimateSum,
    expected_cosine,
    expected_norm_ratio,
    expected_relative_variance,
    expected_squared_cosine,
    quality_of,
)

D = 40


def linear_estimates(num_directions, repeats, direction="gaussian", d=D):
    """Quality of estimates of a fixed gradient from exact slopes <g, u>."""
    gradient = torch.linspace(-1, 2, d, dtype=torch.float64)
    found = []
    for repeat in range(repeats):
        summed = EstimateSum(d)
        for p in range(num_directions):
            u = draw_perturbation(1 + repeat * num_directions + p, d, direction=direction)
            slope = second_moment_inverse(direction, d) * float(gradient.dot(u.double()))
            summed.add_(slope, u)
        found.append(
            quality_of(
                summed.mean,
                gradient,
                variance=summed.variance_of_mean,
                num_directions=num_directions,
            )
        )
    return found


def assert_mean(values, expected):
    """The mean of independent values lies within four standard errors of what is expected."""
    sample = torch.tensor(values, dtype=torch.float64)
    assert abs(float(sample.mean()) - expected) < 4 * float(sample.std()) / len(sample) ** 0.5


@pytest.mark.parametrize("p", [1, 5, 60])
def test_gaussian_directions_have_the_moments_that_theory_says(p):
    found = linear_estimates(p, 600)
    assert_mean([q.cosine for q in found], expected_cosine(D, p))
    assert_mean([q.cosine**2 for q in found], expected_squared_cosine(D, p))
    assert_mean([q.norm_ratio for q in found], expected_norm_ratio(D, p))
    assert_mean([q.norm_ratio**2 for q in found], (D + p + 1) / p)
    assert_mean([q.projection for q in found], 1.0)
    assert_mean([(q.projection - 1) ** 2 for q in found], 2 / p)
    errors = [q.norm_ratio**2 - 2 * q.projection + 1 for q in found]  # |g_hat - g|^2 / |g|^2
    assert_mean(errors, expected_relative_variance(D, p))


@pytest.mark.parametrize("p", [1, 4])
def test_the_squared_cosine_has_a_beta_distribution(p):
    squared = [q.cosine**2 for q in linear_estimates(p, 600)]
    assert stats.kstest(squared, stats.beta(p / 2, (D - 1) / 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_spread_over_directions_estimates_the_variance(direction):
    found = linear_estimates(6, 600, direction)
    expected = expected_relative_variance(D, 6, direction)
    assert_mean([q.relative_variance for q in found], expected)
    assert_mean([q.norm_ratio**2 for q in found], expected + 1)


def test_expected_cosine_is_close_to_the_rule_of_thumb():
    for d, p in ((10_000, 5), (10_000, 400), (5_000_000, 10)):
        assert expected_cosine(d, p) == pytest.approx(math.sqrt(p / (p + d)), rel=0.06)
    assert expected_cosine(1, 3) == 1
    # One direction in two dimensions: the mean of |cos| over the circle.
    assert expected_cosine(2, 1) == pytest.approx(2 / math.pi)


@pytest.mark.parametrize(("d", "p"), [(0, 1), (3, 0)])
def test_sizes_below_one_are_refused(d, p):
    for function in (expected_cosine, expected_squared_cosine, expected_relative_variance):
        with pytest.raises(UserError, match="at least 1"):
            function(d, p)


def test_quality_by_hand():
    quality = quality_of(
        torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]), variance=8.0, num_directions=7
    )
    assert quality.cosine == pytest.approx(0.6)
    assert quality.norm_ratio == pytest.approx(2.5)
    assert quality.projection == pytest.approx(1.5)  # 6 / 4
    assert quality.relative_variance == pytest.approx(2.0)
    assert (quality.true_norm, quality.num_elements, quality.num_directions) == (2.0, 2, 7)


def test_what_is_not_defined_is_nan():
    zero, one = torch.zeros(3), torch.ones(3)
    no_truth = quality_of(one, zero, variance=1.0, num_directions=1)
    assert math.isnan(no_truth.cosine) and math.isnan(no_truth.norm_ratio)
    assert math.isnan(no_truth.relative_variance) and no_truth.true_norm == 0
    no_estimate = quality_of(zero, one, variance=math.nan, num_directions=1)
    assert math.isnan(no_estimate.cosine) and no_estimate.norm_ratio == 0
    with pytest.raises(ValueError, match="shape"):
        quality_of(one, torch.ones(4), variance=0.0, num_directions=1)


def test_the_sum_by_hand():
    summed = EstimateSum(2)
    assert math.isnan(summed.variance_of_mean)
    summed.add_(2.0, torch.tensor([1.0, 0.0]))
    assert math.isnan(summed.variance_of_mean)
    summed.add_(3.0, torch.tensor([0.0, 2.0]))
    assert summed.mean.tolist() == [1.0, 3.0]
    # Deviations (1, -3) and (-1, 3): 20 / (2 * 1).
    assert summed.variance_of_mean == pytest.approx(10.0)
