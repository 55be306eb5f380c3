import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.errors import RunFailedError
from leansplit.federated import Update, UpdateLog
from leansplit.state import apart, together


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


@given(st.lists(st.integers(1, 40), unique=True), st.integers(0, 41), st.integers(0, 5))
def test_what_is_dropped_is_gone_and_the_rest_stays(rounds, version, newest):
    log, rounds = UpdateLog(), sorted(rounds)
    for round in rounds:
        log.append(update(round))
    log.drop_until(version)
    log.keep_newest(newest)
    kept = [t for t in rounds if t > version][-newest:] if newest else []
    assert list(log) == [update(t) for t in kept]
    gone = [t for t in rounds if t not in kept]
    assert log.base_version == max(gone, default=0)
    assert log.latest_version == max(rounds, default=0)
    assert log.since(log.base_version) == tuple(log)
    if gone:
        with pytest.raises(RunFailedError, match=r"since version -?\d+ are gone"):
            log.since(log.base_version - 1)
    again = UpdateLog()
    again.load_state_(together(*apart(log.state())))
    assert list(again) == list(log)
    assert (again.base_version, again.latest_version) == (log.base_version, log.latest_version)


def test_a_log_of_before_updates_were_dropped_is_whole():
    log = UpdateLog()
    log.append(update(3))
    old = {k: v for k, v in log.state().items() if not k.endswith("version")}
    again = UpdateLog()
    again.load_state_(old)
    assert (list(again), again.base_version, again.latest_version) == ([update(3)], 0, 3)


def test_all_updates_hold_as_many_directions():
    log = UpdateLog()
    log.append(update(1))
    with pytest.raises(RunFailedError, match="round 2 has 1 directions, those before have 2"):
        log.append(Update(2, (1,), (0.5,)))


def test_what_was_returned_does_not_change_later():
    log = UpdateLog()
    log.append(update(1))
    before = log.since(0)
    log.append(update(2))
    assert [u.round for u in before] == [1]
