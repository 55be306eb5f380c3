"""Shares are those of the decimal that was given, to the client."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.shares import at_least, at_most


@pytest.mark.parametrize(
    ("share", "count", "exact"), [(0.07, 100, 7), (0.14, 50, 7), (0.29, 100, 29), (0.57, 100, 57)]
)
def test_floats_are_off_by_one_where_shares_are_not(share, count, exact):
    assert math.ceil(share * count) != exact or int(share * count) != exact
    assert at_least(share, count) == at_most(share, count) == exact


@given(st.integers(0, 1000), st.integers(0, 500))
def test_shares_of_thousandths_are_whole_number_arithmetic(thousandths, count):
    share = float(Decimal(thousandths) / 1000)
    assert at_least(share, count) == -(-thousandths * count // 1000)
    assert at_most(share, count) == thousandths * count // 1000


def test_what_is_written_with_an_exponent_is_a_share_too():
    assert at_least(1e-05, 100_000) == at_most(1e-05, 100_000) == 1
    assert (at_least(0, 7), at_most(1, 7)) == (0, 7)
