"""The quorum: how many must answer."""

import pytest

from leansplit.strategies.failures import Failure, Quorum


@pytest.mark.parametrize(
    ("share", "asked", "needed"), [(0.07, 100, 7), (0.14, 50, 7), (0.5, 5, 3), (1.0, 4, 4)]
)
def test_exactly_the_share_is_a_quorum_and_one_less_is_none(share, asked, needed):
    quorum = Quorum(share, 3)
    enough = dict.fromkeys(range(needed), "answer")
    away = {m: Failure("away", "silent") for m in range(needed, asked)}
    assert quorum.of(enough, away, asked) == (enough, away)
    answered, dropped = quorum.of(dict.fromkeys(range(needed - 1), "answer"), away, asked)
    assert not answered and str(dropped[0]).endswith(f"the quorum is {needed}")
