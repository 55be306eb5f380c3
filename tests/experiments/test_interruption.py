"""Ctrl-C in every phase of a run and of a comparison, without Ray: what was measured is kept."""

import json
import os
import signal

import pytest

from leansplit.clients import app as client_app
from leansplit.experiments import compare, resume, run_all, running
from leansplit.experiments.command_line import EXIT_INTERRUPTED
from leansplit.server_app import execution, recording
from leansplit.server_app.interruption import finish_first
from leansplit.server_app.results import read_run
from leansplit.strategies.federation import Federation
from leansplit.strategies.ho_sfl import HOSFL

ROUNDS = 4
SMALL = ["--workers", "-1", "--clients", "6", "--cohort", "2", "--rounds", str(ROUNDS)]
SMALL += ["--set", "task_options.max_train=60", "--set", "task_options.max_test=20"]
SMALL += ["--set", "evaluate_every=2"]


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def leansplit(run_command):
    """Run the command in this process; returns (exit code, standard error)."""

    def run(*arguments):
        code, _, said = run_command(*arguments)
        return code, said

    return run


@pytest.fixture
def press_during(monkeypatch):
    """Press Ctrl-C when a function is called for the n-th time, before it does its work."""

    def install(owner, name, nth=1, times=1):
        original, calls = getattr(owner, name), []

        def pressed(*arguments, **options):
            calls.append(name)
            if len(calls) == nth:
                for _ in range(times):
                    press_ctrl_c()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, pressed)

    return install


# phase: (where, its n-th call, rounds completed and evaluations kept; None: nothing was measured)
PHASES = {
    "checks": (running, "check_run", 1, None),
    "loading": (execution, "settled_config", 1, (0, 1)),
    "measuring a client": (execution, "measure_clients", 1, (0, 1)),
    "set-up": (Federation, "set_up", 1, (0, 1)),
    "a client's set-up": (client_app, "_report", 3, (0, 1)),
    "evaluation before the first round": (recording, "evaluate", 1, (0, 1)),
    "first round": (HOSFL, "aggregate_train", 1, (1, 2)),
    "evaluation after a round": (recording, "evaluate", 2, (2, 2)),
    "a later round": (HOSFL, "aggregate_train", 3, (3, 3)),
}
# phases after which no round is left: the run is complete
LATE = {
    "last round": (HOSFL, "aggregate_train", ROUNDS),
    "last evaluation": (recording, "evaluate", 3),
    "final synchronisation": (HOSFL, "end", 1),
    "writing": (running, "write_outcome", 1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_ends_a_run_with_what_was_measured(phase, leansplit, press_during, tmp_path):
    owner, name, nth, kept = PHASES[phase]
    press_during(owner, name, nth)
    out = tmp_path / "runs" / "mine"
    code, err = leansplit("run", "ho-sfl", *SMALL, "--out", out)
    assert code == EXIT_INTERRUPTED, err
    assert "Traceback" not in err
    if kept is None:
        assert "leansplit: aborted" in err
        assert not (tmp_path / "runs").exists()
        return
    result = json.loads((out / "result.json").read_text())
    assert (result["status"], result["ended_by"]) == ("interrupted", "interrupted")
    assert (result["rounds_completed"], len(read_run(out).rounds)) == kept
    assert result["final_accuracy"] is not None
    assert "unsynchronised_clients" not in result["events"]


@pytest.mark.parametrize("phase", LATE)
def test_ctrl_c_when_no_round_is_left_changes_nothing(phase, leansplit, press_during, tmp_path):
    press_during(*LATE[phase])
    code, err = leansplit("run", "ho-sfl", *SMALL, "--out", tmp_path)
    assert code == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["rounds_completed"]) == ("completed", ROUNDS)


def test_a_second_ctrl_c_aborts_and_leaves_nothing(leansplit, press_during, tmp_path):
    press_during(HOSFL, "aggregate_train", 2, times=2)
    code, err = leansplit("run", "ho-sfl", *SMALL, "--out", tmp_path / "out")
    assert code == EXIT_INTERRUPTED and "leansplit: aborted" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_second_ctrl_c_waits_until_results_are_written(leansplit, press_during, tmp_path):
    press_during(HOSFL, "aggregate_train", 2)
    press_during(running, "write_outcome")
    code, err = leansplit("run", "ho-sfl", *SMALL, "--out", tmp_path)
    assert code == EXIT_INTERRUPTED and "leansplit: aborted" in err, err
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "interrupted"
    assert not list(tmp_path.glob(".*"))


def test_writing_is_finished_first():
    done = []
    with pytest.raises(KeyboardInterrupt), finish_first():
        press_ctrl_c()
        done.append("all of it")
    assert done == ["all of it"]


def test_writing_is_finished_before_a_process_is_ended():
    def end(signum, frame):
        raise SystemExit(1)

    done, before = [], signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(SystemExit), finish_first():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("all of it")
    finally:
        assert signal.signal(signal.SIGTERM, before) is end
    assert done == ["all of it"]


EXPERIMENT = f"""
seeds = [0]
[shared]
workers = -1
clients = 6
cohort = 2
rounds = {ROUNDS}
evaluate_every = 2
task_options.max_train = 60
task_options.max_test = 20
[[methods]]
method = "frozen"
[[methods]]
method = "ho-sfl"
[[methods]]
method = "sflv1"
"""


@pytest.fixture
def comparison(tmp_path):
    """An experiment file and the folder for its results; its runs: sflv1, frozen, ho-sfl."""
    file = tmp_path / "mine.toml"
    file.write_text(EXPERIMENT)
    return file, tmp_path / "runs" / "out"


def statuses(out):
    return sorted(
        json.loads(path.read_text())["status"] for path in out.glob("*/seed-0/result.json")
    )


# phase: (where, its n-th call, status of the runs that leave a result)
COMPARISON_PHASES = {
    "set-up of the second run": (Federation, "set_up", 2, ["completed", "interrupted"]),
    "last round of the second run": (execution.Recorder, "on_round", 2 * ROUNDS, ["completed"] * 2),
    "between runs": (compare, "write_tables", 1, ["completed"]),
    "writing of the first run": (running, "write_outcome", 1, ["completed"]),
    "reading what was written": (resume, "read_run", 2, ["completed"] * 2),
}


@pytest.mark.parametrize("phase", COMPARISON_PHASES)
def test_ctrl_c_ends_a_comparison_with_a_report(phase, leansplit, press_during, comparison):
    owner, name, nth, kept = COMPARISON_PHASES[phase]
    file, out = comparison
    press_during(owner, name, nth)
    code, err = leansplit("compare", file, "--out", out)
    assert code == EXIT_INTERRUPTED, err
    assert "Traceback" not in err and "FAILED" not in err
    assert statuses(out) == kept
    completed = kept.count("completed")
    assert f"interrupted: {completed} of 3 runs are complete; the same command goes on" in err
    assert (out / "report.html").exists() and (out / "summary.csv").exists()


def test_an_interrupted_comparison_goes_on_and_reports_what_was_done_before(
    leansplit, press_during, comparison, monkeypatch
):
    file, out = comparison
    with monkeypatch.context() as patch:
        press_during(Federation, "set_up", 2)
        assert leansplit("compare", file, "--out", out)[0] == EXIT_INTERRUPTED
        patch.undo()
    code, err = leansplit("compare", file, "--out", out)
    assert code == 0, err
    assert "it was interrupted; runs again" in err and err.count("done before") == 1
    assert statuses(out) == ["completed"] * 3


def test_runs_that_are_there_are_reported_even_if_the_first_is_interrupted(
    leansplit, press_during, comparison
):
    file, out = comparison
    assert leansplit("compare", file, "--out", out, "--methods", "frozen,ho-sfl")[0] == 0
    press_during(Federation, "set_up", 1)
    code, err = leansplit("compare", file, "--out", out)
    assert code == EXIT_INTERRUPTED, err
    assert err.count("done before") == 2
    assert "interrupted: 2 of 3 runs are complete" in err


def test_ctrl_c_during_the_checks_leaves_nothing(leansplit, press_during, comparison):
    file, out = comparison
    press_during(run_all, "check_run", 2)
    code, err = leansplit("compare", file, "--out", out)
    assert code == EXIT_INTERRUPTED and "leansplit: aborted" in err
    assert not out.parent.exists()


def test_ctrl_c_while_the_report_is_written_lets_it_finish(leansplit, press_during, comparison):
    file, out = comparison
    press_during(compare, "write_report")
    code, err = leansplit("compare", file, "--out", out)
    assert code == 0, err
    assert statuses(out) == ["completed"] * 3 and (out / "report.html").exists()
