"""A ServerApp as `flwr run` starts it: interrupted, it leaves a checkpoint and can go on."""

import os
import signal
from types import SimpleNamespace

import pytest

from leansplit.clients.app import task_client_app
from leansplit.errors import RunFailedError, UserError
from leansplit.server_app import app as module
from leansplit.server_app.checkpoint_files import find_checkpoints
from leansplit.server_app.results import read_run
from leansplit.strategies.in_process_grid import InProcessGrid

SETTINGS = {"method": "ho-sfl", "clients": 2, "cohort": 2, "rounds": 4, "evaluate_every": 2}
SMALL = "task_options.max_train=40; task_options.max_test=20; checkpoint_every=1"


def run(fault=None, **settings):
    context = SimpleNamespace(run_config={**SETTINGS, "set": SMALL, **settings})
    module._run_for_flower(context, InProcessGrid(task_client_app(), 2, fault=fault))


def end_in_round_2():
    """Return a fault that sends this process SIGTERM once, in the middle of round 2."""
    left = ["once"]

    def strike(message, partition_id):
        if message.metadata.group_id == "2" and left:
            left.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    return strike


def theirs(signum, frame):
    pytest.fail("Flower's own handler was asked")


def test_sigterm_leaves_a_checkpoint_and_resume_goes_on(tmp_path):
    run(out=str(tmp_path / "whole"))
    before = signal.signal(signal.SIGTERM, theirs)  # Flower's process has one
    try:
        out = tmp_path / "killed"
        with pytest.raises(
            RunFailedError, match="interrupted after round 2; it can go on: resume="
        ):
            run(end_in_round_2(), out=str(out))
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_run(out).result.status == "interrupted"
    with pytest.raises(UserError, match=r"is of another run \(seed: 0 -> 1\)"):
        run(resume=str(out), seed=1)
    run(resume=str(out))
    whole, resumed = (read_run(tmp_path / name).result for name in ("whole", "killed"))
    assert resumed.final_model_checksum == whole.final_model_checksum
    assert resumed.events["resumes"] == 1
    assert not find_checkpoints(out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resume": "runs/here"}, "resume must be an absolute folder"),
        ({"out": "runs/here"}, "out must be an absolute folder"),
        ({"resume": "/nowhere"}, "there is no checkpoint in /nowhere"),
        ({"resume_previous": True}, "resume_previous needs resume="),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        run(**settings)


def power_is_out(message, partition_id):
    return "the power is out" if message.metadata.group_id in {"3", "4"} else None


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_lost_quorum_leaves_a_checkpoint_where_there_is_a_folder(tmp_path, has_folder):
    """Nobody asked for checkpoints: the quorum's is left all the same, as by the command."""
    out, more = tmp_path / "run", SMALL.replace("checkpoint_every=1", "quorum_rounds=2")
    told = r"it can go on: resume=" if has_folder else "no folder to keep one in: set out$"
    with pytest.raises(RunFailedError, match=f"too few clients answered .*; .*{told}"):
        run(power_is_out, out=str(out) if has_folder else "", set=more)
    assert bool(find_checkpoints(out)) == has_folder
    if has_folder:
        run(resume=str(out), set=more)
        result = read_run(out).result
        assert result.status == "completed" and result.events["resumes"] == 1
        assert not find_checkpoints(out)
