"""How often an exchange looks for answers: at once and often, then ever less, then often again."""

from types import SimpleNamespace

import pytest

from leansplit.strategies import observed_grid
from leansplit.strategies.observed_grid import ObservedGrid
from leansplit.wire import Ledger


def answer(to):
    return SimpleNamespace(
        metadata=SimpleNamespace(reply_to_message_id=to), has_error=lambda: False
    )


class Answers(ObservedGrid):
    """Gives what was prepared for each look; counts which messages each asks for."""

    def __init__(self, looks):
        super().__init__(None, Ledger())
        self._looks = iter(looks)
        self.asked_for = []

    def push_messages(self, messages):
        return list(messages)

    def pull_messages(self, message_ids):
        self.asked_for.append(set(message_ids))
        return [answer(to) for to in next(self._looks, ())]


@pytest.fixture
def pauses(monkeypatch):
    slept = []
    clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
    monkeypatch.setattr(observed_grid, "time", clock)
    return slept


def test_answers_that_are_there_cost_no_pause(pauses):
    grid = Answers([["a", "b"]])
    assert len(grid.send_and_receive(["a", "b"])) == 2
    assert pauses == [] and grid.num_exchanges == 1


def test_pauses_grow_and_start_over_when_an_answer_comes(pauses):
    grid = Answers([[], [], ["a"], [], ["b"]])
    assert len(grid.send_and_receive(["a", "b"])) == 2
    first = observed_grid._FIRST_POLL_S
    growth = observed_grid._POLL_GROWTH
    assert pauses == pytest.approx([first, first * growth, first, first * growth])
    assert grid.asked_for == [{"a", "b"}] * 3 + [{"b"}] * 2


def test_a_look_that_takes_long_is_taken_less_often(pauses, monkeypatch):
    grid = Answers([[]] * 3 + [["a"]])
    monkeypatch.setattr(
        observed_grid.time, "monotonic", iter([0.0, 0.01, 1.0, 1.05, 2.0, 9.0, 10.0]).__next__
    )
    grid.send_and_receive(["a"])
    assert pauses == pytest.approx([0.01, 0.05, observed_grid._LONGEST_POLL_S])


def test_pauses_stay_short_and_end_with_the_deadline(pauses):
    grid = Answers([])
    assert grid.send_and_receive(["a"], timeout=60.0) == []
    assert max(pauses) == observed_grid._LONGEST_POLL_S
    assert 60 <= sum(pauses) < 60 + observed_grid._LONGEST_POLL_S
