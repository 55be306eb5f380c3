"""The same run twice: on real SuperLink and SuperNode processes, and simulated; then compared.

    python -m leansplit.experiments.loopback /absolute/new/folder --tls --own-data

Everything is on this machine and under that folder: keys, logs, results, Flower's own files. Every
process is stopped at the end, also after Ctrl-C or SIGTERM. ``docs/deployment.md`` explains it.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.loopback_processes import CONNECTION, SUPERLINK, Loopback
from leansplit.experiments.loopback_trial import (
    ENDS,
    FIRST_ANSWER,
    Trial,
    away_as_in,
    flower_keys,
    node_name,
    simulate,
    write_data,
)
from leansplit.server_app.checkpoint_files import find_checkpoints
from leansplit.server_app.outputs import MODEL_FILE
from leansplit.server_app.results import LEDGER_FILE, RESULT_FILE, ROUNDS_FILE, Run, read_run

_POLL_S = 2.0
_APP = Path(__file__).resolve().parents[1] / "pyproject.toml"
_SIGNALS = {"term": signal.SIGTERM, "kill": signal.SIGKILL}
_STRANGER = "stranger"
_SERVER_APP = "flwr-serverapp"

Say = Callable[[str], None]


class Show:
    """One trial, from the first process to the comparison.

    Args:
        trial: what is to be shown.
        loopback: a SuperLink that is up.
        say: told what was found.
        deadline: on the monotonic clock.
    """

    def __init__(self, trial: Trial, loopback: Loopback, say: Say, deadline: float) -> None:
        self.trial, self.loopback, self.say, self.deadline = trial, loopback, say, deadline
        self.out = trial.folder / "run"
        self._is_refused = False

    def run(self) -> None:
        """Start SuperNodes, run, do what is to be survived, and compare.

        Raises:
            RunFailedError: if the deployed run fails, or is not the simulated one.
        """
        trial, say = self.trial, self.say
        for node in range(trial.nodes):
            self.loopback.add_node(node_name(node), trial.node_config(node))
        if trial.tls:
            config = {"partition-id": trial.nodes, "num-partitions": trial.nodes + 1}
            self.loopback.add_node(_STRANGER, config, registered=False)
        run_id = self._submit()
        say(f"run {run_id} is accepted")
        if trial.restart:
            self._restart_last(run_id)
            say(f"the last SuperNode was ended by {_signal(trial.restart)} and started again")
        if trial.resume:
            round = self._end_server_app(run_id)
            say(f"the ServerApp was ended by {_signal(trial.resume)}; it left round {round}")
            run_id = self._submit(resume=str(self.out))
            say(f"run {run_id}, which goes on from there, is accepted")
        simulated = None if trial.restart else simulate(trial)
        if simulated:
            say(f"simulated: the final model is {simulated.final_model_checksum}")
        self._wait_for_the_end(run_id)
        found = self._results()
        if simulated is None:
            # Whoever was away in a round decides what it learned: the simulated clients are too.
            simulated = simulate(trial, away_as_in(found.ledger))
            say(f"simulated, the same away: the final model is {simulated.final_model_checksum}")
        result = found.result
        events = f", events: {result.events}" if result.events else ""
        say(f"deployed: the final model is {result.final_model_checksum}{events}")
        if result.final_model_checksum != simulated.final_model_checksum:
            raise RunFailedError(
                f"the deployed run ends with the model {result.final_model_checksum}, the "
                f"simulated one with {simulated.final_model_checksum}"
            )
        self._check_events(found)
        if trial.probe_ahead:
            self._compare_exchanges(result.num_exchanges)
        if trial.tls:
            while not self._stranger_is_refused():
                self._pause()
            say("an unregistered SuperNode was refused")

    def _submit(self, **more: str) -> str:
        """Start the run as users do, with results in ``out``; return its id."""
        app = self.trial.folder / "app"
        app.mkdir(exist_ok=True)
        (app / _APP.name).write_bytes(_APP.read_bytes())
        listed = tomllib.loads(_APP.read_text())["tool"]["flwr"]["app"]["config"]
        values = {**flower_keys(self.trial, _flat(listed)), "out": str(self.out), **more}
        keys = self.trial.folder / "run.toml"
        keys.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        return str(
            self.loopback.flwr("run", str(app), CONNECTION, "--run-config", str(keys))["run-id"]
        )

    def _restart_last(self, run_id: str) -> None:
        """End the last SuperNode once it has answered round 1, and start it until it is taken."""
        trial, loopback = self.trial, self.loopback
        name = node_name(trial.nodes - 1)
        answers_of_round_1 = 2 if trial.probe_ahead else 3  # set-up, and each exchange
        while loopback.log_of(name).count("Sent successfully") < answers_of_round_1:
            self._require_running(run_id)
            self._pause()
        loopback.end_node(name, _SIGNALS[trial.restart])
        ended = len(loopback.log_of(name))
        loopback.start_node(name)
        while "SuperNode ID:" not in loopback.log_of(name)[ended:]:
            loopback.keep_node(name)
            self._pause()

    def _end_server_app(self, run_id: str) -> int:
        """End the ServerApp once it has left a checkpoint; return that of which round."""
        while not find_checkpoints(self.out):
            self._require_running(run_id)
            self._pause()
        patience_s = self.deadline - time.monotonic()  # SIGTERM ends it after its round
        self.loopback.end_process(SUPERLINK, _SERVER_APP, _SIGNALS[self.trial.resume], patience_s)
        left = find_checkpoints(self.out)
        if not left:
            raise RunFailedError("the run was over before its ServerApp was ended: more rounds")
        (self.out / RESULT_FILE).unlink(missing_ok=True)  # what SIGTERM let it write
        return int(left[0].name.rpartition("-")[2])

    def _wait_for_the_end(self, run_id: str) -> None:
        """Wait until Flower calls the run finished.

        It is asked once there are results, or the SuperLink logs the end: each `flwr ls` takes
        seconds of a core.
        """
        while not self._has_ended(run_id):
            self._pause()
        while not self._is_completed(run_id):
            self._pause()

    def _has_ended(self, run_id: str) -> bool:
        end = re.compile(rf"Finished task \d+ of run {run_id}")
        is_over = end.search(self.loopback.log_of(SUPERLINK)) is not None
        return is_over or (self.out / RESULT_FILE).exists()

    def _is_completed(self, run_id: str) -> bool:
        """Ask Flower.

        Raises:
            RunFailedError: if the run ended otherwise.
        """
        [run] = self.loopback.flwr("ls", CONNECTION, "--run-id", run_id)["runs"]
        if run["status"] == "finished:completed":
            return True
        if run["status"].startswith("finished"):
            raise RunFailedError(f"the run is {run['status']}: {run['status-details']}")
        return False

    def _require_running(self, run_id: str) -> None:
        """Wait no longer for a run that is over.

        Raises:
            RunFailedError: if it is, with Flower's reason where it failed.
        """
        if self._has_ended(run_id) and self._is_completed(run_id):
            raise RunFailedError("the run was over before anything was done to it: more rounds")

    def _results(self) -> Run:
        """Return what the run left behind."""
        if missing := [
            name
            for name in (RESULT_FILE, ROUNDS_FILE, LEDGER_FILE, MODEL_FILE)
            if not (self.out / name).is_file()
        ]:
            raise RunFailedError(f"the run left no {missing[0]} in {self.out}")
        return read_run(self.out)

    def _check_events(self, found: Run) -> None:
        """Hold what was counted to what was done."""
        events = found.result.events
        if self.trial.restart:
            last, opened = self.trial.nodes - 1, found.ledger["kind"] == FIRST_ANSWER
            rounds = found.ledger.loc[opened & (found.ledger["client_id"] == last), "round"]
            if (
                not events.get("resyncs")
                or events.get("unsynchronised_clients")
                or rounds.max() != self.trial.rounds
            ):
                raise RunFailedError(f"the restarted SuperNode did not recover: {events}")
            return
        expected = {"resumes": 1} if self.trial.resume else {}
        if events != expected:
            raise RunFailedError(f"counted {events}, and {expected} was expected")

    def _compare_exchanges(self, deployed: int) -> None:
        """Hold a run that probes ahead to the same one that does not."""
        plain = simulate(self.trial, probe_ahead=False)
        rounds = self.trial.rounds
        self.say(
            f"with two exchanges a round: the final model is {plain.final_model_checksum}; "
            f"{plain.num_exchanges} exchanges, {2 * rounds} of them in rounds; probing ahead took "
            f"{deployed}, {rounds} of them in rounds"
        )
        is_restarted = bool(self.trial.restart or self.trial.resume)
        if not is_restarted and plain.num_exchanges - deployed != rounds:
            raise RunFailedError("probing ahead did not take half the exchanges")
        if not self.trial.restart and (
            plain.final_model_checksum != read_run(self.out).result.final_model_checksum
        ):
            raise RunFailedError("probing ahead ends with another model than two exchanges do")

    def _stranger_is_refused(self) -> bool:
        """Say whether the SuperNode without a registered key was refused; end what is left of it.

        Its helper process would go on looking for it.
        """
        if not self._is_refused and self.loopback.is_refused(_STRANGER):
            self._is_refused = True
            self.loopback.end_node(_STRANGER, signal.SIGKILL)
        return self._is_refused

    def _pause(self) -> None:
        self.loopback.require_alive()
        if self.trial.tls:
            self._stranger_is_refused()
        if time.monotonic() > self.deadline:
            raise RunFailedError(f"not done in time; see {self.loopback.folder / 'logs'}")
        time.sleep(_POLL_S)


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

    def say(line: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - started:6.1f} s] {line}\n")
        sys.stdout.flush()

    with Loopback(trial.folder, tls=trial.tls) as loopback:
        if trial.own_data:
            write_data(trial)
        say(f"SuperLink is up {'with TLS' if trial.tls else 'insecurely'}; files in {trial.folder}")
        Show(trial, loopback, say, started + trial.timeout_s).run()
    say("all processes are stopped")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables of keys under dotted names, as Flower does."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _signal(how: str) -> str:
    return f"SIG{how.upper()}"


def _end(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command, and return 0 if all was shown, 1 if not, 2 for a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="new, absolute")
    parser.add_argument("--tls", action="store_true", help="with TLS and authenticated SuperNodes")
    parser.add_argument("--nodes", type=int, default=2, help="SuperNodes (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    ends = [end for end in ENDS if end]
    parser.add_argument(
        "--restart", choices=ends, default="", help="end a SuperNode, and start it again"
    )
    parser.add_argument(
        "--resume", choices=ends, default="", help="end the ServerApp, and go on from a checkpoint"
    )
    parser.add_argument(
        "--probe-ahead", action="store_true", help="one exchange a round in place of two"
    )
    parser.add_argument(
        "--own-data", action="store_true", help="a folder of data for each SuperNode"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, dest="timeout_s", help="seconds (default: 600)"
    )
    given = parser.parse_args(arguments)
    try:
        trial = Trial(**vars(given))
        signal.signal(signal.SIGTERM, _end)
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
