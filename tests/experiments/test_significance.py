"""Paired differences: hand-computed numbers, and silence where nothing can be said."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.experiments.significance import paired_difference


def by_seed(*values):
    return dict(enumerate(values))


@pytest.mark.parametrize("num_seeds", [0, 1, 2])
def test_two_seeds_say_nothing(num_seeds):
    values = by_seed(*[0.5, 0.9][:num_seeds])
    found = paired_difference(values, by_seed(*[0.4] * num_seeds))
    assert found.num_seeds == num_seeds
    assert found.low is found.high is found.p_value is found.sign_flip_p_value is None
    assert (found.mean is None) == (num_seeds == 0)


def test_differences_without_spread_have_no_interval():
    found = paired_difference(by_seed(3.0, 4.0, 5.0), by_seed(1.0, 2.0, 3.0))
    assert (found.mean, found.low, found.p_value) == (2.0, None, None)
    assert found.sign_flip_p_value == 0.25
    same = paired_difference(by_seed(1.0, 2.0, 3.0), by_seed(1.0, 2.0, 3.0))
    assert (same.mean, same.p_value, same.sign_flip_p_value) == (0.0, None, 1.0)


def test_equal_up_to_rounding_is_without_spread():
    found = paired_difference(by_seed(0.1 + 0.2, 0.5, 0.3), by_seed(0.0, 0.2, 0.0))
    assert found.p_value is None and found.sign_flip_p_value == 0.25


def test_four_seeds_by_hand():
    # Differences 4, 2, 3, -1: mean 2, variance 14 / 3, standard error sqrt(7 / 6).
    found = paired_difference(by_seed(4.0, 2.0, 3.0, -1.0), by_seed(0.0, 0.0, 0.0, 0.0))
    error = (7 / 6) ** 0.5
    assert found.high - found.mean == pytest.approx(3.182446 * error)  # t(0.975), 3 degrees
    # Sums at least 8 away from 0: 8 (as is), 10 (all positive), and their mirror images.
    assert found.sign_flip_p_value == 4 / 16
    assert 0 < found.p_value < found.sign_flip_p_value


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=7))
def test_symmetry_and_enumeration(differences):
    values, zeros = by_seed(*map(float, differences)), by_seed(*[0.0] * len(differences))
    found, mirrored = paired_difference(values, zeros), paired_difference(zeros, values)
    assert found.mean == pytest.approx(-mirrored.mean)
    assert found.sign_flip_p_value == mirrored.sign_flip_p_value
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    assert found.sign_flip_p_value == sum(s >= abs(sum(differences)) for s in sums) / len(sums)
    if found.low is not None:
        # The interval and the test are one statement: p < 0.05 exactly where 0 lies outside.
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_many_seeds_are_left_to_the_t_test():
    values = by_seed(*(float(i % 5) for i in range(40)))
    found = paired_difference(values, by_seed(*[0.0] * 40))
    assert found.sign_flip_p_value is None and found.p_value < 0.001
