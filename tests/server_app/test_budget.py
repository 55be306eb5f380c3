"""What ends a run: whichever budget is spent first, and the result says which."""

import math
import threading

import pytest

from leansplit.clients.app import app
from leansplit.errors import UserError
from leansplit.server_app.budget import Budget
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.outputs import run_result
from leansplit.strategies.in_process_grid import InProcessGrid

SMALL = {
    "task_options.max_train": 60,
    "task_options.max_test": 20,
    "clients": 4,
    "cohort": 2,
    "batch_size": 5,
    "rounds": 6,
    "evaluate_every": 2,
}


def run(method, stop=None, on_progress=None, **settings):
    config = run_config(method, SMALL | settings)
    grid = InProcessGrid(app, config.clients)
    return execute(config, grid, stop=stop, on_progress=on_progress)


def test_rounds_end_a_run_without_any_other_budget():
    outcome = run("sflv1")
    assert (outcome.status, outcome.ended_by) == ("completed", "rounds")
    assert outcome.rounds_completed == 6


def test_samples():
    outcome = run("sflv1", samples=21)
    assert (outcome.ended_by, outcome.samples_seen, outcome.rounds_completed) == ("samples", 30, 3)
    assert outcome.rounds[-1]["round"] == 3  # evaluated where it ended


OF_EACH_KIND = ["ho-sfl", "sflv2", "heron-sfl", "fedavg", "frozen"]


@pytest.mark.parametrize("method", OF_EACH_KIND)
def test_bytes_end_the_run_with_the_first_round_that_reaches_them(method):
    full = run(method, evaluate_every=1)
    by_round = [row["uplink_bytes"] + row["downlink_bytes"] for row in full.rounds]
    exact = run(method, megabytes=by_round[3] / 1e6)
    assert (exact.ended_by, exact.rounds_completed) == ("bytes", 3)
    above = run(method, megabytes=(by_round[3] + 1) / 1e6)
    assert (above.ended_by, above.rounds_completed) == ("bytes", 4)
    last = exact.rounds[-1]
    assert last["round"] == 3 and last["uplink_bytes"] + last["downlink_bytes"] == by_round[3]


@pytest.mark.parametrize("method", OF_EACH_KIND)
def test_a_target_below_chance_ends_the_run_before_its_first_round(method):
    outcome = run(method, target_accuracy=1e-12)
    assert (outcome.status, outcome.ended_by) == ("completed", "accuracy")
    assert (outcome.rounds_completed, len(outcome.rounds)) == (0, 1)
    result = run_result(outcome, command=[], started_at="2026-01-01")
    assert result.ended_by == "accuracy" and result.samples_seen == 0


def test_the_first_evaluation_at_the_target_ends_the_run():
    full = run("sflv1", rounds=30)
    accuracies = [row["accuracy"] for row in full.rounds]
    target = next(a for a in accuracies if a > accuracies[0])
    outcome = run("sflv1", rounds=30, target_accuracy=target)
    first = accuracies.index(target)
    assert outcome.ended_by == "accuracy" and outcome.status == "completed"
    assert outcome.rounds_completed == full.rounds[first]["round"]
    assert [row["accuracy"] for row in outcome.rounds] == accuracies[: first + 1]


def test_whichever_comes_first():
    assert run("sflv1", samples=20, megabytes=1e3, target_accuracy=1.0).ended_by == "samples"
    assert run("sflv1", samples=1000, megabytes=1e-6).ended_by == "bytes"
    assert run("sflv1", samples=10**9, megabytes=1e6).ended_by == "rounds"


def test_a_target_reached_where_another_budget_ends_is_said():
    learns = {"evaluate_every": 100, "client.lr": 1.0, "server.lr": 1.0}
    full = run("sflv1", rounds=30, **learns)
    best = full.rounds[-1]["accuracy"]
    samples = full.samples_seen
    assert best > full.rounds[0]["accuracy"]
    both = run("sflv1", rounds=40, samples=samples, target_accuracy=best, **learns)
    assert (both.ended_by, both.samples_seen) == ("accuracy", samples)


def test_an_interruption_and_a_failure_are_endings_too():
    stop = threading.Event()

    def stop_after_the_first_round(progress):
        if progress.round == 1:
            stop.set()

    outcome = run("sflv1", stop=stop, on_progress=stop_after_the_first_round)
    assert outcome.status == outcome.ended_by == "interrupted" and outcome.rounds_completed == 1
    outcome = run("sflv1", stop=stop)  # already stopped
    assert outcome.status == outcome.ended_by == "interrupted" and outcome.rounds_completed == 0
    stop.clear()
    at_its_end = {"stop": stop, "on_progress": stop_after_the_first_round, "samples": 10}
    outcome = run("sflv1", **at_its_end)
    assert (outcome.status, outcome.ended_by) == ("completed", "samples")
    outcome = run("ho-sfl", **{"server.lr": 3e38, "client.lr": 3e38})
    assert outcome.status == outcome.ended_by == "failed"


def test_progress_is_the_share_of_the_budget_that_runs_out_first():
    seen = []
    run("sflv1", samples=60, rounds=100, megabytes=1e6, on_progress=seen.append)
    assert [p.share_done for p in seen if p.round == 3] == pytest.approx([0.5])
    assert seen[-1].share_done == 1.0
    assert Budget(rounds=10, megabytes=2).share_spent(1, 0, 1_000_000) == 0.5
    assert Budget(rounds=10).share_spent(5, 10**9, 10**9) == 0.5


def test_a_target_is_not_missed_by_rounding():
    assert 0.9 * 0.8 > 0.72
    assert Budget(rounds=1, target_accuracy=0.9 * 0.8).is_reached(0.72)
    assert not Budget(rounds=1, target_accuracy=0.73).is_reached(0.72)
    assert not Budget(rounds=1).is_reached(1.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rounds", 0, "rounds must be at least 1"),
        ("samples", -1, "samples must be at least 0"),
        ("megabytes", -1, "megabytes must be"),
        ("megabytes", math.nan, "megabytes must be"),
        ("megabytes", math.inf, "megabytes must be"),
        ("target_accuracy", 83.8, "must be a fraction"),
        ("target_accuracy", -0.1, "must be a fraction"),
        ("target_accuracy", math.nan, "must be a fraction"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(key, value, message):
    with pytest.raises(UserError, match=message):
        run_config("ho-sfl", SMALL | {key: value})
