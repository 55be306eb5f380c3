"""The first term of a sum: one pass, the bits of three."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leansplit.noise import Direction, draw_perturbation
from leansplit.zeroth_order import begin_sum_


def bits(values: Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


def same_bits(direction: Tensor, factor: float) -> bool:
    total = torch.full_like(direction, torch.nan)
    begin_sum_(total, factor, direction)
    return bits(total) == bits(torch.zeros_like(direction).add_(factor * direction))


@given(
    factor=st.floats(allow_nan=False, width=32),
    direction=st.sampled_from(["gaussian", "rademacher", "sphere", "unit_sphere"]),
    size=st.integers(1, 100),
)
def test_a_begun_sum_has_the_bits_of_zero_plus_the_product(
    factor: float, direction: Direction, size: int
) -> None:
    assert same_bits(draw_perturbation(7, size, direction=direction), factor)


@pytest.mark.parametrize("factor", [0.0, -0.0, 1e-45, -1e-45, 1e-30, -2e-20, 3e38])
def test_zeros_of_either_sign_and_values_that_underflow(factor: float) -> None:
    values = torch.tensor([0.0, -0.0, 1e-6, -1e-6, 1e-24, -1e-24, 1.0, -1.0, 4.0])
    assert same_bits(values, factor)
