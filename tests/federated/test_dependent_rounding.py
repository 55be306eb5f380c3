"""Dependent rounding and the cohorts drawn with it: exact size, prescribed chances, repeatable."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.errors import UserError
from leansplit.federated import (
    dependent_rounding,
    inclusion_probabilities,
    sample_by_dimension,
)
from leansplit.noise import numpy_generator


def whole_sums():
    """Lists in [0, 1] whose sum is whole, sure entries among them."""

    def complete(entries):
        rest = math.ceil(sum(entries)) - sum(entries)
        return [*entries, min(1.0, max(0.0, rest))]

    entry = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, 0.5]))
    return st.lists(entry, max_size=30).map(complete)


@given(whole_sums(), st.integers(0, 2**63))
def test_the_set_has_exactly_the_size_that_the_chances_sum_to(chances, seed):
    chosen = dependent_rounding(chances, numpy_generator(seed))
    assert len(chosen) == len(set(chosen)) == round(sum(chances))
    assert list(chosen) == sorted(chosen)
    assert {i for i, x in enumerate(chances) if x == 1} <= set(chosen)
    assert not {i for i, x in enumerate(chances) if x == 0} & set(chosen)
    assert chosen == dependent_rounding(chances, numpy_generator(seed))


@pytest.mark.parametrize(
    "chances",
    [
        [0.5, 0.5],
        [0.1, 0.9, 0.3, 0.7],
        [1.0, 0.25, 0.25, 0.5, 0.0],
        [0.85, 0.85, 0.85, 0.15, 0.15, 0.15],
        [2 / 3, 2 / 3, 2 / 3],
    ],
)
def test_each_entry_occurs_as_often_as_it_should(chances):
    generator, draws = np.random.default_rng(0), 6_000
    counts = Counter(i for _ in range(draws) for i in dependent_rounding(chances, generator))
    for i, x in enumerate(chances):
        spread = math.sqrt(x * (1 - x) / draws)
        assert abs(counts[i] / draws - x) <= 4.5 * spread


def test_members_are_negatively_correlated():
    chances, draws = [0.5, 0.25, 0.75, 0.5], 6_000
    generator = np.random.default_rng(1)
    pairs = Counter(
        pair
        for _ in range(draws)
        for pair in combinations(dependent_rounding(chances, generator), 2)
    )
    for i, j in combinations(range(4), 2):
        expected = chances[i] * chances[j]
        assert pairs[i, j] / draws <= expected + 4.5 * math.sqrt(expected / draws)


@pytest.mark.parametrize("chances", [[0.5], [0.5, 0.6], [-0.5, 1.5], [math.nan, 1.0]])
def test_chances_that_make_no_set_are_refused(chances):
    with pytest.raises(UserError, match="sum to a whole number"):
        dependent_rounding(chances, numpy_generator(0))


# --- cohorts ------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.data(),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**32),
)
def test_chances_are_probabilities_and_sum_to_the_cohort(dimensions, data, beta, seed):
    size = data.draw(st.integers(1, len(dimensions)))
    sizes = dict(enumerate(dimensions))
    chances = inclusion_probabilities(sizes, size, beta, seed)
    assert all(0 <= p <= 1 for p in chances.values())
    assert sum(chances.values()) == pytest.approx(size)
    cohort = sample_by_dimension(sizes, size, beta, seed, 1)
    assert len(set(cohort)) == size and cohort == sorted(cohort)
    pairs = [(a, b) for a in chances for b in chances if chances[a] > chances[b]]
    assert all(sizes[a] <= sizes[b] for a, b in pairs)


def test_the_formula():
    sizes = {3: 100, 5: 0, 7: 50, 9: 100}
    chances = inclusion_probabilities(sizes, 2, 0.5, root_seed=0)
    assert chances == pytest.approx({3: 0.25, 5: 0.75, 7: 0.75, 9: 0.25})


def test_ties_are_broken_by_one_order_for_the_whole_run():
    sizes = dict.fromkeys(range(20), 7)
    first = inclusion_probabilities(sizes, 5, 0.5, root_seed=0)
    assert first == inclusion_probabilities(sizes, 5, 0.5, root_seed=0)
    assert first != inclusion_probabilities(sizes, 5, 0.5, root_seed=1)
    assert Counter(round(p, 6) for p in first.values()) == {0.625: 5, 0.125: 15}


def test_without_preference_every_cohort_is_equally_likely():
    sizes, draws = {0: 0, 1: 10, 2: 20, 3: 30, 4: 30}, 6_000
    counts = Counter(
        tuple(sample_by_dimension(sizes, 2, 0.0, 3, round)) for round in range(1, draws + 1)
    )
    assert len(counts) == 10
    expected = draws / 10
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_squared < 30  # 9 degrees of freedom: one in 2,000 exceeds it


def test_cohorts_are_functions_of_seed_and_round():
    sizes = dict(enumerate([0, 5] * 15))
    rounds = range(1, 40)
    first = [sample_by_dimension(sizes, 6, 0.75, 0, t) for t in rounds]
    assert first == [sample_by_dimension(sizes, 6, 0.75, 0, t) for t in rounds]
    assert first != [sample_by_dimension(sizes, 6, 0.75, 1, t) for t in rounds]
    assert len({tuple(cohort) for cohort in first}) > 20
    assert sample_by_dimension(dict(reversed(sizes.items())), 6, 0.75, 0, 7) == first[6]


@pytest.mark.parametrize("size", [0, 4])
def test_a_cohort_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(UserError, match="cannot be drawn from 3 clients"):
        sample_by_dimension({0: 1, 1: 1, 2: 1}, size, 0.5, 0, 1)
