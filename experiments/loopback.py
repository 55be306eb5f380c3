"""The same run twice: on real SuperLink and SuperNode processes, and simulated; then compared.

    python -m leansplit.experiments.loopback /absolute/new/folder --tls --own-data

Everything is on this machine and under that folder: keys, logs, results, Flower's own files. Every
process is stopped at the end, also after Ctrl-C or SIGTERM. ``docs/deployment.md`` explains it.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pandas as pd

from leansplit.clients.app import OWN_DATA, task_client_app
from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.launch import quiet
from leansplit.experiments.loopback_processes import CONNECTION, SUPERLINK, Loopback
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.outputs import MODEL_FILE
from leansplit.server_app.results import LEDGER_FILE, RESULT_FILE, ROUNDS_FILE, RunResult, read_run
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples

METHOD = "ho-sfl"
_POLL_S = 2.0
_APP = Path(__file__).resolve().parents[1] / "pyproject.toml"
_SIGNALS = {"term": signal.SIGTERM, "kill": signal.SIGKILL}
_STRANGER = "stranger"


@dataclass(frozen=True)
class Trial:
    """What is to be shown.

    Attributes:
        folder: new, absolute; for everything that is written.
        tls: with certificates and authenticated SuperNodes; one that is not registered is refused.
        nodes: SuperNodes.
        rounds: of the run.
        restart: how the last SuperNode is ended after round 1, to be started again; "" = it is not.
        own_data: whether every SuperNode trains on files of its own.
        timeout_s: the longest that all of it may take.
    """

    folder: Path
    tls: bool = False
    nodes: int = 2
    rounds: int = 3
    restart: str = ""
    own_data: bool = False
    timeout_s: float = 600.0

    def settings(self) -> dict[str, int | float | str]:
        """Return the run's keys, as ``flwr run`` and the simulation take them."""
        options = ""
        if self.own_data:
            options = f"task_options.data_path={self.folder / 'data' / 'server'}"
        return {
            "method": METHOD,
            "task": "images" if self.own_data else "digits",
            "model": "digits-cnn",
            "clients": self.nodes,
            "cohort": self.nodes,
            "rounds": self.rounds,
            "evaluate_every": self.rounds,
            "exchange_timeout_s": 120.0,
            "set": options,
        }

    def node_config(self, node: int) -> dict[str, int | str]:
        """Return what a SuperNode is started with."""
        own = {OWN_DATA: str(self.folder / "data" / f"node-{node}")} if self.own_data else {}
        return {"partition-id": node, "num-partitions": self.nodes, **own}


def show(trial: Trial) -> None:
    """Do it, and say what was found.

    Raises:
        UserError: if it cannot be tried here.
        RunFailedError: if the deployed run fails, or is not the simulated one.
    """
    if not _APP.is_file():
        raise UserError(
            "run this from a checkout of leansplit: its pyproject.toml is the Flower app"
        )
    started = time.monotonic()
    deadline = started + trial.timeout_s

    def say(line: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - started:6.1f} s] {line}\n")
        sys.stdout.flush()

    with Loopback(trial.folder, tls=trial.tls) as loopback:
        if trial.own_data:
            _write_data(trial)
        say(f"SuperLink is up {'with TLS' if trial.tls else 'insecurely'}; files in {trial.folder}")
        for node in range(trial.nodes):
            loopback.add_node(_node(node), trial.node_config(node))
        if trial.tls:
            stranger = {"partition-id": trial.nodes, "num-partitions": trial.nodes + 1}
            loopback.add_node(_STRANGER, stranger, registered=False)
        out = trial.folder / "run"
        run_id = _submit(trial, loopback, out)
        say(f"run {run_id} is accepted")
        simulated = _simulate(trial)
        say(f"simulated: the final model is {simulated}")
        if trial.restart:
            _restart_last(trial, loopback, deadline)
            say(f"the last SuperNode was ended by SIG{trial.restart.upper()} and started again")
        _wait_for_the_end(loopback, run_id, out, deadline)
        result = _checked_result(trial, out, simulated)
        events = f", events: {result.events}" if result.events else ""
        say(f"deployed: the final model is {result.final_model_checksum}{events}")
        if trial.tls:
            if not loopback.is_refused(_STRANGER):
                raise RunFailedError("an unregistered SuperNode was not refused")
            say("an unregistered SuperNode was refused")
    say("all processes are stopped")


def _submit(trial: Trial, loopback: Loopback, out: Path) -> str:
    """Start the run as users do, with results in ``out``; return its id."""
    app = trial.folder / "app"
    app.mkdir()
    (app / _APP.name).write_bytes(_APP.read_bytes())
    values = {**trial.settings(), "out": str(out)}
    keys = trial.folder / "run.toml"
    keys.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return str(loopback.flwr("run", str(app), CONNECTION, "--run-config", str(keys))["run-id"])


def _simulate(trial: Trial) -> str:
    """Return the final model's checksum, of the same run in this process."""
    settings = trial.settings()
    more = str(settings.pop("set"))
    settings |= dict([more.split("=", 1)]) if more else {}
    config: RunConfig = run_config(METHOD, settings)
    nodes = {node: trial.node_config(node) for node in range(trial.nodes)}
    with quiet():
        grid = InProcessGrid(task_client_app(), trial.nodes, node_configs=nodes)
        return execute(config, grid).final_model_checksum


def _restart_last(trial: Trial, loopback: Loopback, deadline: float) -> None:
    """End the last SuperNode once it has answered round 1, and start it until it is taken."""
    name = _node(trial.nodes - 1)
    answers_of_round_1 = 3  # set-up, forward, probe
    while loopback.log_of(name).count("Sent successfully") < answers_of_round_1:
        _pause(loopback, deadline)
    loopback.end_node(name, _SIGNALS[trial.restart])
    ended = len(loopback.log_of(name))
    while "SuperNode ID:" not in loopback.log_of(name)[ended:]:
        loopback.keep_node(name)
        _pause(loopback, deadline)


def _wait_for_the_end(loopback: Loopback, run_id: str, out: Path, deadline: float) -> None:
    """Wait until Flower calls the run finished.

    It is asked once there are results, or the SuperLink logs the end: each `flwr ls` takes seconds
    of a core.
    """
    end = re.compile(rf"Finished task \d+ of run {run_id}")
    while not (out / RESULT_FILE).exists() and not end.search(loopback.log_of(SUPERLINK)):
        _pause(loopback, deadline)
    while True:
        [run] = loopback.flwr("ls", CONNECTION, "--run-id", run_id)["runs"]
        if run["status"] == "finished:completed":
            return
        if run["status"].startswith("finished"):
            raise RunFailedError(f"the run is {run['status']}: {run['status-details']}")
        _pause(loopback, deadline)


def _checked_result(trial: Trial, out: Path, simulated: str) -> RunResult:
    """Return the results, held to what was promised."""
    if missing := [
        name
        for name in (RESULT_FILE, ROUNDS_FILE, LEDGER_FILE, MODEL_FILE)
        if not (out / name).is_file()
    ]:
        raise RunFailedError(f"the run left no {missing[0]} in {out}")
    result = read_run(out).result
    if trial.restart:
        if not result.events.get("resyncs") or result.events.get("unsynchronised_clients"):
            raise RunFailedError(f"the restarted SuperNode did not recover: {result.events}")
    elif result.final_model_checksum != simulated:
        raise RunFailedError(
            f"the deployed run ends with the model {result.final_model_checksum}, the simulated "
            f"one with {simulated}"
        )
    return result


def _pause(loopback: Loopback, deadline: float) -> None:
    loopback.require_alive()
    if time.monotonic() > deadline:
        raise RunFailedError(f"not done in time; see {loopback.folder / 'logs'}")
    time.sleep(_POLL_S)


def _node(node: int) -> str:
    return f"node-{node}"


def _write_data(trial: Trial) -> None:
    """Write digits as images: a share for each SuperNode, and other ones for the server."""
    from PIL import Image

    from leansplit.tasks import load_task

    def write(folder: Path, examples: Examples, which: str) -> None:
        pixels = examples.inputs[:, 0]
        low, high = float(pixels.min()), float(pixels.max())
        grey = ((pixels - low) / (high - low) * 255).round().numpy().astype(np.uint8)
        encoded = [io.BytesIO() for _ in grey]
        for picture, file in zip(grey, encoded, strict=True):
            Image.fromarray(picture).save(file, "PNG")
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"image": [f.getvalue() for f in encoded], "label": examples.labels.tolist()}
        pd.DataFrame(columns).to_parquet(folder / f"{which}.parquet")

    task = load_task("digits")
    size = 100
    for part, name in enumerate(["server", *map(_node, range(trial.nodes))]):
        folder = trial.folder / "data" / name
        write(folder, task.train.select(range(part * size, (part + 1) * size)), "train")
        write(folder, task.test.select(range(size if name == "server" else 1)), "test")


def _end(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command, and return 0 if all was shown, 1 if not, 2 for a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="new, absolute")
    parser.add_argument("--tls", action="store_true", help="with TLS and authenticated SuperNodes")
    parser.add_argument("--nodes", type=int, default=2, help="SuperNodes (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument(
        "--restart", choices=[*_SIGNALS], default="", help="end a SuperNode, and start it again"
    )
    parser.add_argument(
        "--own-data", action="store_true", help="a folder of data for each SuperNode"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, dest="timeout_s", help="seconds (default: 600)"
    )
    trial = Trial(**vars(parser.parse_args(arguments)))
    signal.signal(signal.SIGTERM, _end)
    try:
        show(trial)
    except (UserError, RunFailedError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; all processes are stopped\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
