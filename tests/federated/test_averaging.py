import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.federated import mean_scalars, moved_towards_mean, sample_weights, weighted_mean


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=200))
def test_sample_weights_are_shares(sizes):
    weights = sample_weights(sizes)
    assert math.isclose(math.fsum(weights), 1)
    total = sum(sizes)
    assert weights == [size / total for size in sizes]


def test_ten_equal_clients():
    assert sample_weights([7] * 10) == [0.1] * 10  # whose float sum is not 1; that is fine


def test_mean_scalars_by_hand():
    scalars = [torch.tensor([1.0, -2.0]), torch.tensor([3.0, 6.0])]
    assert mean_scalars(scalars, [0.25, 0.75]) == (2.5, 4.0)


def test_mean_scalars_sums_in_float64_and_rounds_once():
    scalars = [torch.tensor([2.0**24]), torch.tensor([1.0]), torch.tensor([-(2.0**24)])]
    assert mean_scalars(scalars, [1.0, 1.0, 1.0]) == (1.0,)  # float32 would say 0
    third = torch.tensor([1.0])
    (mean,) = mean_scalars([third] * 3, [1 / 3] * 3)
    assert mean == 1.0


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=6),
    st.floats(0.01, 1),
)
def test_mean_scalars_are_what_float32_carries(values, share):
    other = [value / 3 for value in values]
    mean = mean_scalars([torch.tensor(values), torch.tensor(other)], [share, 1 - share])
    assert torch.tensor(mean, dtype=torch.float32).tolist() == list(mean)


def test_one_client_is_its_own_mean():
    v = torch.tensor([0.1, -3e-8, 7.25])
    assert mean_scalars([v], [1.0]) == tuple(v.tolist())


def test_weighted_mean_by_hand():
    states = [
        {"w": torch.tensor([[1.0, 2.0]]), "step": torch.tensor(3)},
        {"step": torch.tensor(3), "w": torch.tensor([[5.0, -2.0]])},
    ]
    mean = weighted_mean(states, [0.75, 0.25])
    assert torch.equal(mean["w"], torch.tensor([[2.0, 1.0]]))
    assert mean["step"].item() == 3 and mean["step"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weighted_mean_rounds_once_to_the_dtype(dtype):
    tiny = torch.finfo(dtype).eps
    states = [{"w": torch.tensor([1.0 + k * tiny], dtype=dtype)} for k in (0, 1, 3)]
    weights = [0.5, 0.25, 0.25]
    mean = weighted_mean(states, weights)["w"]
    assert mean.dtype == dtype
    expected = sum(w * state["w"].double() for w, state in zip(weights, states, strict=True)).to(
        dtype
    )
    assert torch.equal(mean, expected) and mean.item() == 1 + tiny


def test_weighted_mean_sums_in_float64():
    states = [{"w": torch.tensor([value])} for value in (2.0**24, 1.0, -(2.0**24))]
    assert weighted_mean(states, [1.0, 1.0, 1.0])["w"].item() == 1  # float32 would say 0


def test_the_mean_of_equals_is_equal_and_shares_no_memory():
    state = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0))}
    state["count"] = torch.tensor([4])
    for mean in (weighted_mean([state], [1.0]), weighted_mean([state] * 4, [0.25] * 4)):
        for name, value in state.items():
            assert torch.equal(mean[name], value)
            assert mean[name].data_ptr() != value.data_ptr()


def test_every_state_needs_a_weight():
    with pytest.raises(ValueError, match="zip"):
        weighted_mean([{"w": torch.ones(1)}] * 2, [1.0])
    with pytest.raises(ValueError, match="zip"):
        mean_scalars([torch.ones(1)] * 2, [1.0])


def test_moved_towards_mean_by_hand():
    start = {"a": torch.tensor([1.0, 10.0])}
    states = [{"a": torch.tensor([2.0, 10.0])}, {"a": torch.tensor([4.0, 30.0])}]
    moved = moved_towards_mean(start, states, [0.75, 0.25], 0.5)
    assert moved["a"].tolist() == [1.75, 12.5]  # halfway to [2.5, 15.0]
    assert start["a"].tolist() == [1.0, 10.0]


def test_all_the_way_to_the_mean_is_the_mean_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    start, *states = ({"a": torch.randn(1000, generator=generator) * 10.0**-k} for k in range(4))
    weights = [0.5, 0.3, 0.2]
    moved = moved_towards_mean(start, states, weights, 1.0)
    assert torch.equal(moved["a"], weighted_mean(states, weights)["a"])
