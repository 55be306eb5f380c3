from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.errors import UserError
from leansplit.federated import batch_indices, sample_cohort, service_order, take_batch

SEEDS = st.integers(-(2**63), 2**63 - 1)
POPULATIONS = st.sets(st.integers(0, 10**6), min_size=1, max_size=40)


@given(SEEDS, st.integers(1, 10_000), POPULATIONS, st.data())
def test_cohorts(root_seed, round, population, data):
    size = data.draw(st.integers(1, len(population)))
    cohort = sample_cohort(root_seed, round, sorted(population), size)
    assert len(set(cohort)) == len(cohort) == size
    assert set(cohort) <= population
    assert cohort == sorted(cohort)
    # The order in which the population is named does not matter.
    assert sample_cohort(root_seed, round, sorted(population, reverse=True), size) == cohort


def test_golden_draws():
    # numpy may change Generator.permutation between versions; this notices.
    assert sample_cohort(0, 1, range(100), 5) == [4, 16, 28, 34, 44]
    assert sample_cohort(0, 700, range(100), 5) == [5, 22, 26, 32, 72]
    assert service_order(0, 1, range(6)) == [2, 0, 1, 4, 5, 3]
    batch = batch_indices(0, 1, 2, 0, num_samples=20, batch_size=6)
    assert batch.tolist() == [14, 13, 18, 8, 5, 11]


def test_round_700_needs_no_round_699():
    alone = sample_cohort(5, 700, range(50), 7)
    after_all = [sample_cohort(5, t, range(50), 7) for t in range(1, 701)][-1]
    assert alone == after_all


def test_two_root_seeds_and_two_rounds_give_different_cohorts():
    first = [tuple(sample_cohort(1, t, range(1_000), 10)) for t in range(1, 51)]
    second = [tuple(sample_cohort(2, t, range(1_000), 10)) for t in range(1, 51)]
    assert len(set(first + second)) == 100


def test_everyone_is_drawn_equally_often():
    rounds, size, population = 2_000, 3, 12
    counts = np.zeros(population)
    for t in range(1, rounds + 1):
        counts[sample_cohort(9, t, range(population), size)] += 1
    share = size / population
    standard_error = (rounds * share * (1 - share)) ** 0.5
    assert np.abs(counts - rounds * share).max() < 4 * standard_error


@pytest.mark.parametrize(("size", "population"), [(0, 5), (6, 5), (-1, 5), (1, 0)])
def test_impossible_cohorts(size, population):
    with pytest.raises(UserError, match=f"cohort of {size} cannot be drawn from {population}"):
        sample_cohort(0, 1, range(population), size)


@given(SEEDS, st.integers(1, 1000), POPULATIONS)
def test_service_order_is_a_permutation(root_seed, round, cohort):
    order = service_order(root_seed, round, sorted(cohort))
    assert sorted(order) == sorted(cohort)
    assert service_order(root_seed, round, sorted(cohort, reverse=True)) == order


def test_service_order_changes_every_round_and_is_not_the_cohorts_draw():
    orders = {tuple(service_order(0, t, range(20))) for t in range(1, 51)}
    assert len(orders) == 50
    starts = np.bincount([service_order(0, t, range(4))[0] for t in range(1, 801)], minlength=4)
    assert np.abs(starts - 200).max() < 4 * (800 * 0.25 * 0.75) ** 0.5


# --- batches ------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 1000), st.integers(0, 50), st.integers(1, 60), st.integers(1, 20))
def test_consecutive_batches_walk_through_epochs(root_seed, round, client, samples, batch_size):
    size = min(batch_size, samples)
    steps = -(-2 * samples // size)
    batches = [
        batch_indices(root_seed, round, client, h, num_samples=samples, batch_size=batch_size)
        for h in range(steps)
    ]
    assert all(len(set(batch.tolist())) == len(batch) == size for batch in batches)
    walked = np.concatenate(batches).tolist()
    assert sorted(walked[:samples]) == list(range(samples))  # one epoch, each sample once
    assert walked[samples : 2 * samples] == walked[:samples]  # then from the start again


@given(st.integers(1, 8), st.integers(8, 20), st.integers(0, 5))
def test_a_client_with_few_samples_uses_all_of_them_once(samples, batch_size, local_step):
    batch = batch_indices(0, 1, 0, local_step, num_samples=samples, batch_size=batch_size)
    assert sorted(batch.tolist()) == list(range(samples))


def test_every_argument_of_a_batch_matters():
    def batch(root_seed=0, round=1, client_id=0, local_step=0):
        drawn = batch_indices(
            root_seed, round, client_id, local_step, num_samples=1_000, batch_size=10
        )
        return tuple(drawn.tolist())

    batches = [batch(), batch(root_seed=1), batch(round=2), batch(client_id=1), batch(local_step=1)]
    assert len(set(batches)) == 5
    assert batch() == batch()


@dataclass
class Samples:
    inputs: torch.Tensor
    labels: torch.Tensor


def test_take_batch_keeps_inputs_and_labels_together():
    labels = torch.arange(30)
    data = Samples(labels[:, None] * 10.0, labels)
    inputs, drawn = take_batch(data, 3, 4, 5, 1, batch_size=8)
    expected = batch_indices(3, 4, 5, 1, num_samples=30, batch_size=8)
    assert drawn.tolist() == expected.tolist()
    assert torch.equal(inputs, drawn[:, None] * 10.0)
    inputs.zero_()
    assert data.inputs[1].item() == 10  # a copy
