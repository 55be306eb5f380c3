"""SuperLink and SuperNodes as real processes on this machine; the long ones on request."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.loopback import Show, main, show
from leansplit.experiments.loopback_processes import Loopback
from leansplit.experiments.loopback_trial import Trial, away_as_in, simulate
from leansplit.server_app.results import ledger_table, read_run
from tests.whole_grid import WHOLE_GRID


def can_listen():
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError:
        return False
    return True


HAS_FLOWER = shutil.which("flower-superlink", path=Path(sys.executable).parent) is not None
pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not HAS_FLOWER, reason="flower-superlink is not installed"),
    pytest.mark.skipif(not can_listen(), reason="no port of this machine can be listened on"),
    pytest.mark.timeout(900),
]
# An exchange takes seconds there, so these need minutes even on an idle machine.
takes_minutes = pytest.mark.skipif(not WHOLE_GRID, reason="LEANSPLIT_WHOLE_GRID=1 runs them")


def processes_of(folder):
    """Return the processes that work in a folder."""
    working = [(p.info["name"], p.info["cwd"] or "") for p in psutil.process_iter(["name", "cwd"])]
    return [name for name, place in working if place.startswith(str(folder))]


@takes_minutes
def test_authenticated_nodes_with_data_of_their_own_equal_the_simulation(tmp_path, capsys):
    """One exchange a round or two, the same bits; a node that is not registered is refused."""
    trial = Trial(tmp_path / "here", tls=True, own_data=True, probe_ahead=True, rounds=2)
    show(trial)
    said = capsys.readouterr().out
    assert "an unregistered SuperNode was refused" in said
    result = read_run(trial.folder / "run").result
    assert (result.status, result.events, result.num_exchanges) == ("completed", {}, 4)
    for other in ("simulated", "deployed", "with two exchanges a round"):
        assert f"{other}: the final model is {result.final_model_checksum}" in said
    assert not processes_of(tmp_path)


@takes_minutes
@pytest.mark.parametrize("how", ["term", "kill"])
def test_a_restarted_node_recovers(how, tmp_path, capsys):
    show(Trial(tmp_path / "here", tls=True, restart=how, rounds=5, timeout_s=850))
    result = read_run(tmp_path / "here" / "run").result
    assert result.events["resyncs"] == 1
    assert "unsynchronised_clients" not in result.events
    said = f"simulated, the same away: the final model is {result.final_model_checksum}"
    assert said in capsys.readouterr().out
    assert not processes_of(tmp_path)


@takes_minutes
@pytest.mark.parametrize("how", ["term", "kill"])
def test_a_run_goes_on_where_its_server_app_ended(how, tmp_path):
    show(Trial(tmp_path / "here", resume=how, rounds=4, timeout_s=850))
    result = read_run(tmp_path / "here" / "run").result
    assert (result.status, result.events) == ("completed", {"resumes": 1})
    assert not processes_of(tmp_path)


def test_the_simulation_hears_of_clients_as_another_run_did(tmp_path):
    """A SuperNode that is away between the exchanges of round 2, and in all of round 3."""
    trial = Trial(tmp_path / "unused", rounds=4)
    gone = {("2", "train.ho_sfl_probe"), ("3", "train.ho_sfl_forward")}

    def away(message, partition_id):
        metadata = message.metadata
        is_gone = partition_id == 1 and (metadata.group_id, metadata.message_type) in gone
        return "away" if is_gone else None

    whole, holed = simulate(trial), simulate(trial, away)
    again = simulate(trial, away_as_in(ledger_table(holed.ledger)))
    assert holed.events["dropped_clients"] == again.events["dropped_clients"] == 2
    checksums = {o.final_model_checksum for o in (holed, again)}
    assert len(checksums) == 1 and whole.final_model_checksum not in checksums
    same = simulate(trial, away_as_in(ledger_table(whole.ledger)))
    assert (same.events, same.final_model_checksum) == ({}, whole.final_model_checksum)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--restart", "kill", "--rounds", "5"], "restart needs tls"),
        (["--tls", "--restart", "kill", "--resume", "kill"], "show one at a time"),
        (["--resume", "kill", "--rounds", "2"], "at least 3 rounds"),
        (["--nodes", "0"], "nodes and rounds must be at least 1, got 0 and 3"),
    ],
)
def test_what_shows_nothing_is_refused_before_anything_starts(options, message, tmp_path, capsys):
    assert main([str(tmp_path / "here"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_end_of_the_command_ends_all_it_started(tmp_path):
    command = [sys.executable, "-m", "leansplit.experiments.loopback", str(tmp_path / "here")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "here" / "logs" / "node-0.log"
    while not log.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "interrupted; all processes are stopped\n")
    waited_until = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < waited_until:
        time.sleep(0.2)  # one that was killed may take a moment to be gone
    assert not processes_of(tmp_path)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("finished:failed", "the run is finished:failed: out of paper"),
        ("finished:completed", "the run was over before anything was done to it"),
    ],
)
@pytest.mark.parametrize("options", [{"resume": "kill"}, {"restart": "term", "tls": True}])
def test_a_run_that_ends_early_is_not_waited_for(options, status, message, tmp_path):
    class Ended:
        def log_of(self, name):
            return "Finished task 3 of run 7"

        def flwr(self, *command):
            return {"runs": [{"status": status, "status-details": "out of paper"}]}

        def require_alive(self):
            pass

        def is_refused(self, name):
            return False

    trial = Trial(tmp_path, rounds=4, **options)
    show = Show(trial, Ended(), lambda line: None, deadline=time.monotonic() + 60)
    wait = show._end_server_app if trial.resume else show._restart_last
    with pytest.raises(RunFailedError, match=message):
        wait("7")


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="not overwritten"):
        Loopback(tmp_path, tls=True)
    with pytest.raises(UserError, match="absolute path"):
        Loopback(Path("here"), tls=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
