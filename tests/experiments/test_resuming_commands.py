"""`leansplit run --resume` and comparisons that go on from their checkpoints; SIGTERM."""

import json
import os
import signal

import pytest

from leansplit.experiments.command_line import EXIT_INTERRUPTED
from leansplit.experiments.running import results_to_replace
from leansplit.server_app import checkpoints
from leansplit.server_app.checkpoint_files import find_checkpoints
from leansplit.server_app.checkpoints import Checkpointer
from leansplit.server_app.config import run_config
from leansplit.strategies.ho_sfl import HOSFL

ROUNDS = 6
SMALL = ["--workers", "-1", "--clients", "4", "--cohort", "2", "--rounds", str(ROUNDS)]
SMALL += ["--set", "task_options.max_train=60", "--set", "task_options.max_test=20"]
SMALL += ["--set", "evaluate_every=3", "--set", "checkpoint_every=2"]


@pytest.fixture
def leansplit(run_command):
    """Run the command in this process; returns (exit code, standard error on one line)."""

    def run(*arguments):
        code, _, said = run_command(*arguments)
        return code, " ".join(said.split())

    return run


@pytest.fixture
def send_during(monkeypatch):
    """Send this process a signal when a method is called for the n-th time."""

    def install(owner, name, nth, signum, times=1):
        original, calls = getattr(owner, name), []

        def sending(*arguments, **options):
            calls.append(name)
            if len(calls) == nth:
                for _ in range(times):
                    os.kill(os.getpid(), signum)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, sending)

    return install


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def whole(leansplit, tmp_path):
    """The result of the run that nobody stopped."""
    assert leansplit("run", "ho-sfl", *SMALL, "--out", tmp_path / "whole")[0] == 0
    return result(tmp_path / "whole")


def test_a_completed_run_leaves_results_only(whole, tmp_path):
    assert not (tmp_path / "whole" / "checkpoints").exists()
    assert whole["events"] == {}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_goes_on_where_a_signal_ended_it(signum, whole, leansplit, send_during, tmp_path):
    out = tmp_path / "out"
    send_during(HOSFL, "aggregate_train", 3, signum)
    code, err = leansplit("run", "ho-sfl", *SMALL, "--out", out)
    assert code == EXIT_INTERRUPTED and f"add --resume {out}" in err
    assert result(out)["status"] == "interrupted"
    assert [path.name for path in find_checkpoints(out)] == ["round-00000003", "round-00000002"]
    code, err = leansplit("run", "ho-sfl", *SMALL, "--resume", out)
    assert code == 0 and "goes on from round 3" in err
    resumed = result(out)
    assert resumed["final_model_checksum"] == whole["final_model_checksum"]
    assert resumed["traffic"] == whole["traffic"]
    assert resumed["events"] == {"resumes": 1, "worker_refills": 2} or resumed["events"].keys() == {
        "resumes",
        "worker_refills",
    }
    assert not (out / "checkpoints").exists()
    code, err = leansplit("run", "ho-sfl", *SMALL, "--resume", out)
    assert code == 2 and f"there is no checkpoint in {out}; a run that has completed" in err


def test_a_second_signal_aborts_and_leaves_the_last_checkpoint(
    whole, leansplit, send_during, tmp_path
):
    out = tmp_path / "out"
    send_during(HOSFL, "aggregate_train", 5, signal.SIGTERM, times=2)
    code, err = leansplit("run", "ho-sfl", *SMALL, "--out", out)
    assert code == EXIT_INTERRUPTED and "aborted" in err
    assert not (out / "result.json").exists()
    replaced = results_to_replace(run_config("ho-sfl", {"rounds": ROUNDS}), out)
    assert f"--resume {out} goes on from its round 00000004" in replaced
    assert leansplit("run", "ho-sfl", *SMALL, "--resume", out)[0] == 0
    assert result(out)["final_model_checksum"] == whole["final_model_checksum"]


def test_what_cannot_go_on_is_refused_in_one_line(leansplit, send_during, tmp_path):
    out = tmp_path / "out"
    send_during(HOSFL, "aggregate_train", 5, signal.SIGINT)
    leansplit("run", "ho-sfl", *SMALL, "--out", out)
    code, err = leansplit("run", "ho-sfl", *SMALL, "--seed", 7, "--resume", out)
    assert code == 2 and "of another run (seed: 0 -> 7)" in err
    newest, _ = find_checkpoints(out)
    (newest / "state.json").write_text("{")
    code, err = leansplit("run", "ho-sfl", *SMALL, "--resume", out)
    assert code == 2 and "state.json: it has 1 bytes" in err and "--resume-previous" in err
    code, err = leansplit("run", "ho-sfl", *SMALL, "--resume", out, "--resume-previous")
    assert code == 0 and "goes on from round 4" in err
    code, err = leansplit("run", "ho-sfl", *SMALL, "--resume-previous")
    assert code == 2 and "needs --resume DIR" in err


EXPERIMENT = f"""
seeds = [0]
[shared]
workers = -1
clients = 4
cohort = 2
rounds = {ROUNDS}
evaluate_every = 3
checkpoint_every = 1
task_options.max_train = 60
task_options.max_test = 20
[[methods]]
method = "ho-sfl"
[[methods]]
method = "sflv2"
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_goes_on_from_the_checkpoints_of_its_runs(
    jobs, leansplit, send_during, monkeypatch, tmp_path
):
    file = tmp_path / "mine.toml"
    file.write_text(EXPERIMENT)
    assert leansplit("compare", file, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        send_during(Checkpointer, "on_round_end", ROUNDS + 4, signal.SIGTERM, times=2)
        code, err = leansplit("compare", file, "--out", out)
        patch.undo()
    assert code == EXIT_INTERRUPTED and "aborted" in err
    [stopped] = {path.parent.parent for path in out.rglob("manifest.json")}
    rounds = [int(path.name[-3:]) for path in find_checkpoints(stopped)]
    newest = find_checkpoints(stopped)[0]
    (newest / "rounds.parquet").write_bytes(b"")
    code, err = leansplit("compare", file, "--out", out, "--jobs", jobs)
    assert code == 0, err
    assert "rounds.parquet: it has 0 bytes" in err
    assert f"goes on from round {rounds[1]:08d}" in err and err.count("done before") == 1
    for path in (tmp_path / "whole").rglob("result.json"):
        again = json.loads((out / path.relative_to(tmp_path / "whole")).read_text())
        assert again["final_model_checksum"] == json.loads(path.read_text())["final_model_checksum"]
    assert not list(out.rglob("manifest.json"))


def test_a_comparison_of_plain_loops_says_that_they_leave_none(leansplit, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(EXPERIMENT)
    code, err = leansplit("compare", file, "--out", tmp_path / "out", "--plain")
    assert code == 2 and "plain loops leave no checkpoints" in err


def test_checkpoint_keys_are_listed():
    from leansplit.experiments.key_reference import key_rows

    rows = {key: meaning for key, _, meaning in key_rows()}
    for key in ("checkpoint_every", "checkpoint_seconds", "checkpoint_keep"):
        assert rows[key]
    assert checkpoints.Checkpointer
