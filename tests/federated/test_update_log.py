import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.errors import RunFailedError
from leansplit.federated import Update, UpdateLog


def update(round):
    return Update(round, (round, round + 1), (0.5, -0.25))


@given(st.sets(st.integers(1, 60), max_size=20), st.integers(-1, 61))
def test_since_returns_what_is_newer_oldest_first(rounds, version):
    log = UpdateLog()
    for round in sorted(rounds):
        log.append(update(round))
    missing = log.since(version)
    assert [u.round for u in missing] == [t for t in sorted(rounds) if t > version]
    assert missing == tuple(u for u in log if u.round > version)
    assert log.latest_version == max(rounds, default=0)
    assert len(log) == len(rounds)


@pytest.mark.parametrize("round", [0, 3, 5])
def test_only_newer_updates_are_appended(round):
    log = UpdateLog()
    log.append(update(5))
    with pytest.raises(RunFailedError, match=f"round {round} follows version 5"):
        log.append(update(round))
    assert [u.round for u in log] == [5]


def test_round_zero_is_the_initial_state():
    with pytest.raises(RunFailedError, match="round 0 follows version 0"):
        UpdateLog().append(update(0))


@pytest.mark.parametrize(("seeds", "scalars"), [((1, 2), (0.5,)), ((), ()), ((1,), ())])
def test_seeds_and_scalars_pair_up(seeds, scalars):
    with pytest.raises(RunFailedError, match="update of round 4 has"):
        Update(4, seeds, scalars)


def test_what_was_returned_does_not_change_later():
    log = UpdateLog()
    log.append(update(1))
    before = log.since(0)
    log.append(update(2))
    assert [u.round for u in before] == [1]
