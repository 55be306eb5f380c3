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

from leansplit.errors import UserError
from leansplit.experiments.loopback import Trial, show
from leansplit.experiments.loopback_processes import Loopback
from leansplit.server_app.results import read_run
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
    """A node that is not registered is refused."""
    show(Trial(tmp_path / "here", tls=True, own_data=True, rounds=2, timeout_s=800))
    said = capsys.readouterr().out
    assert "an unregistered SuperNode was refused" in said
    result = read_run(tmp_path / "here" / "run").result
    assert f"simulated: the final model is {result.final_model_checksum}" in said
    assert (result.status, result.events) == ("completed", {})
    assert not processes_of(tmp_path)


@takes_minutes
def test_a_restarted_node_recovers(tmp_path):
    show(Trial(tmp_path / "here", tls=True, own_data=True, restart="term", rounds=5, timeout_s=800))
    events = read_run(tmp_path / "here" / "run").result.events
    assert events["resyncs"] == 1
    assert events["dropped_node"] >= 1
    assert "unsynchronised_clients" not in events
    assert not processes_of(tmp_path)


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
    assert not processes_of(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="not overwritten"):
        Loopback(tmp_path, tls=True)
    with pytest.raises(UserError, match="absolute path"):
        Loopback(Path("here"), tls=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
