"""The first term of a sum: the bits of adding it to zeros."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leansplit.federated import OptimizerConfig, Replica, Update
from leansplit.noise import Direction, draw_perturbation
from leansplit.parameters import ParameterSpec
from leansplit.zeroth_order import ZerothOrderConfig, begin_sum_, estimate


def bits(values: Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


def same_bits(direction: Tensor, factor: float) -> bool:
    total = torch.full_like(direction, torch.nan)
    begin_sum_(total, factor, direction)
    return bits(total) == bits(torch.zeros_like(direction).add_(factor * direction))


@given(
    factor=st.floats(allow_nan=False),
    direction=st.sampled_from(["gaussian", "rademacher", "sphere", "unit_sphere"]),
    size=st.integers(1, 100),
)
def test_a_begun_sum_has_the_bits_of_zero_plus_the_product(
    factor: float, direction: Direction, size: int
) -> None:
    assert same_bits(draw_perturbation(7, size, direction=direction), factor)


@pytest.mark.parametrize(
    "factor", [0.0, -0.0, 1e-45, -1e-45, 1e-30, -2e-20, 3e38, 1e39, -1e300, math.inf, math.nan]
)
def test_zeros_of_either_sign_and_what_leaves_the_range(factor: float) -> None:
    values = torch.tensor([0.0, -0.0, 1e-6, -1e-6, 1e-24, -1e-24, 1.0, -1.0, 4.0])
    assert same_bits(values, factor)


def test_it_writes_its_own_part_alone() -> None:
    total = torch.full((9,), 5.0)
    begin_sum_(total[2:5], 2.0, torch.ones(3))
    assert total.tolist() == [5, 5, 2, 2, 2, 5, 5, 5, 5]
    with pytest.raises(AssertionError):
        begin_sum_(total[2:5], 2.0, torch.ones(7))


@pytest.mark.parametrize("seed_pool", [0, 2])
def test_a_scalar_that_no_factor_can_hold_makes_a_step_infinite(seed_pool: int) -> None:
    """As it always did: whoever evaluates the model says so, and nothing else breaks."""
    config = ZerothOrderConfig(num_perturbations=2, seed_pool=seed_pool)
    replica = Replica({"w": torch.ones(3)}, OptimizerConfig(lr=1.0), config)
    replica.catch_up_([Update(t, (1, 2), (1e37, 1.0)) for t in (1, 2)])
    assert not replica.vector.isfinite().any()


def test_planned_without_values_it_has_its_size() -> None:
    spec = ParameterSpec.of({"w": torch.ones(3)})
    v = torch.ones(2, dtype=torch.float64)
    config = ZerothOrderConfig(num_perturbations=2)
    found = estimate(spec, (1, 2), v, config, device="meta")
    assert found.is_meta and found.shape == (3,)
