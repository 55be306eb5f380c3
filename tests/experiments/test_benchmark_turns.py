"""Programs that take turns, and the ratios of their steps."""

import threading

import pytest

from leansplit.experiments.benchmarks import turns
from leansplit.experiments.benchmarks.turns import Turns, ratios


def test_one_is_awake_and_turns_go_round():
    done, awake = [], threading.Lock()

    def program(name, steps):
        def run(after_step):
            for step in range(steps):
                assert awake.acquire(blocking=False)
                done.append((step, name))
                awake.release()
                after_step()

        return run

    seconds = Turns({"a": program("a", 3), "b": program("b", 2), "c": program("c", 3)}).run()
    assert done == sorted(done)  # step by step, each in the order given
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 2, "c": 3}


def test_waiting_for_others_is_no_time_of_ones_own(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))

    def program(after_step):
        for _ in range(4):
            after_step()

    seconds = Turns({"a": program, "b": program}).run()
    assert all(each == [1] * 4 for each in seconds.values())  # two readings of the clock apart


def test_an_error_of_one_ends_it_and_is_raised():
    steps = []

    def fails(after_step):
        after_step()
        raise ValueError("broken")

    def goes_on(after_step):
        for step in range(3):
            steps.append(step)
            after_step()

    with pytest.raises(ValueError, match="broken"):
        Turns({"fails": fails, "goes on": goes_on}).run()
    assert steps == [0, 1, 2]


def test_ratios_are_of_steps_of_one_turn():
    assert ratios([9, 2, 4, 6], [1, 1, 1, 1], warm_up=1) == (3.0, 4.0, 5.0)
    assert ratios([8, 2, 30], [4, 1, 10], warm_up=0)[1] == 2.0
