"""When a run leaves a checkpoint, what is in it, and which one a run may go on from."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leansplit.costs import StepCosts
from leansplit.errors import UserError
from leansplit.noise import STREAM_VERSION
from leansplit.server_app.checkpoint_files import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    find_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from leansplit.server_app.config import RunConfig
from leansplit.server_app.key_values import config_changes
from leansplit.server_app.recording import Outcome, Recorder
from leansplit.server_app.results import (
    LEDGER_COLUMNS,
    RESULT_FILE,
    config_hash,
    ledger_table,
    rounds_table,
    to_plain,
    typed_table,
    utc_now,
)
from leansplit.server_app.telemetry import EstimateWatcher, telemetry_table
from leansplit.state import apart, together
from leansplit.strategies.federation import Federation
from leansplit.strategies.resuming import RunState
from leansplit.strategies.running import RoundReport, RunningStrategy
from leansplit.wire import LedgerEntry

log = logging.getLogger("leansplit")

_PLACE_KEYS = ("workers", "out", "exchange_timeout_s")
"""Keys that may differ when a run goes on: they say where it runs, and decide nothing else."""


@dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps its checkpoints.

    Attributes:
        folder: created with the first.
        start: the one that the run goes on from.
    """

    folder: Path
    start: Checkpoint | None = None


class Checkpointer:
    """An observer that writes a checkpoint when one is due, and when the run is cut short.

    A run that loses its quorum leaves one in any case, an interrupted run if it was to leave any.
    A run whose clients noise their uploads in secret leaves none: what clients remember has none.

    A disk that refuses ends no run: it is logged and counted as ``failed_checkpoints``.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        outcome: Outcome,
        strategy: RunningStrategy,
        recorder: Recorder,
        watcher: EstimateWatcher | None,
    ) -> None:
        self._checkpoints = checkpoints
        self._outcome = outcome
        self._strategy = strategy
        self._recorder = recorder
        self._watcher = watcher
        self._last_time = time.monotonic()
        self._last_round: int | None = None
        self._own: list[Path] = []
        if checkpoints.start is not None:
            self._last_round = checkpoints.start.round
            self._own.append(checkpoint_path(checkpoints.folder, checkpoints.start.round))

    def on_set_up(self, federation: Federation) -> None:
        """Go on with the results so far.

        Raises:
            UserError: if clients hold other samples, or other frozen weights, than they did.
        """
        start = self._checkpoints.start
        if start is None:
            return
        run = start.fields["run"]
        if run["num_samples"] != _sizes(federation):
            raise UserError("clients hold other samples than before; the run cannot go on")
        if run["fixed_checksum"] != federation.plan.fixed_checksum:
            raise UserError(
                "the model's frozen weights are not those of the checkpoint; the run cannot go on"
            )
        rows = [
            {str(k): None if k == "train_loss" and math.isnan(v) else v for k, v in row.items()}
            for row in start.tables["rounds"].to_dict("records")
        ]
        self._recorder.go_on(rows, run["elapsed_s"])
        self._outcome.rounds_completed = start.round
        self._outcome.samples_seen = self._strategy.samples_seen
        if self._watcher is not None:
            measured = start.tables["telemetry"].to_dict("records")
            self._watcher.go_on([{str(k): v for k, v in row.items()} for row in measured])

    def on_round(self, report: RoundReport) -> bool:
        """Go on: the round is not over before its evaluation."""
        return True

    def on_round_end(self, round: int, *, is_stopped: bool) -> None:
        """Write a checkpoint if one is due.

        Raises:
            UserError: if the strategy cannot be checkpointed.
        """
        config = self._outcome.config
        is_due = config.checkpoint_every > 0 and round % config.checkpoint_every == 0
        waited = time.monotonic() - self._last_time
        is_due |= 0 < config.checkpoint_seconds <= waited
        if is_stopped:  # a run that ended by its budget leaves its results and needs no more
            leaves_any = config.has_checkpoints or self._checkpoints.start is not None
            is_due = self._outcome.status == "interrupted" and leaves_any
            is_due |= self._strategy.has_lost_quorum
        after = self._strategy.resumes_after
        if not is_due or after == self._last_round or config.privacy.is_secret:
            return
        path = checkpoint_path(self._checkpoints.folder, after)
        # One of just that round, from before others came to nothing, is better than one now.
        checkpoint = None if path in self._own else self._checkpoint()
        try:
            if checkpoint is not None:
                path = write_checkpoint(self._checkpoints.folder, checkpoint)
        except UserError as error:
            log.warning("%s", error)
            self._strategy.count("failed_checkpoints")
        else:
            # None of a later round: of those that came to nothing there may be some.
            own = [other for other in self._own if other.name < path.name] + [path]
            self._own = own[-config.checkpoint_keep :]
            prune_checkpoints(self._checkpoints.folder, keep=set(self._own))
            self._last_round = after
        self._last_time = time.monotonic()

    def _checkpoint(self) -> Checkpoint:
        strategy, outcome = self._strategy, self._outcome
        state = strategy.run_state()
        run = {
            "num_exchanges": state.num_exchanges,
            "elapsed_s": self._recorder.elapsed_s,
            "num_samples": _sizes(strategy.federation),
            "fixed_checksum": strategy.federation.plan.fixed_checksum,
            "client_costs": asdict(outcome.client_costs) if outcome.client_costs else None,
        }
        try:
            tensors, fields = apart(
                {"strategy": state.strategy, "deposits": state.deposits, "run": run}
            )
        except TypeError as error:
            raise UserError(f"{type(strategy).__name__} cannot be checkpointed: {error}") from error
        # An interrupted run has evaluated once more, which the run that goes on will not; rounds
        # that came to nothing are taken, and evaluated, again.
        rows = [
            row
            for row in outcome.rounds
            if row["round"] <= state.round and strategy.is_evaluated(row["round"])
        ]
        tables = {"rounds": rounds_table(rows), "ledger": ledger_table(state.ledger)}
        if self._watcher is not None:
            measured = [row for row in self._watcher.rows if row["round"] <= state.round]
            tables["telemetry"] = telemetry_table(measured)
        return Checkpoint(state.round, _about(outcome.config), tensors, fields, tables)


def why_not_kept(config: RunConfig, checkpoints: Checkpoints | None) -> str:
    """Say why a run that lost its quorum leaves no checkpoint; empty if it leaves one."""
    if config.privacy.is_secret:
        return (
            "no checkpoint is left, for it would hold smashed data without the noise of privacy.…; "
            "the run must start anew"
        )
    if checkpoints is None:
        return "no checkpoint is left, for there is no folder to keep one in: set out"
    return ""


def run_state_of(checkpoint: Checkpoint) -> RunState:
    """Return what a strategy goes on from.

    Raises:
        CheckpointError: if the checkpoint lacks a part of it.
    """
    try:
        tree = together(checkpoint.tensors, checkpoint.fields)
        ledger = typed_table(checkpoint.tables["ledger"], LEDGER_COLUMNS)
        entries = [LedgerEntry(*row) for row in ledger.itertuples(index=False, name=None)]
        exchanges = tree["run"]["num_exchanges"]
        return RunState(checkpoint.round, tree["strategy"], tree["deposits"], entries, exchanges)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint is incomplete: {error}") from error


def client_costs_of(checkpoint: Checkpoint) -> StepCosts | None:
    """Return what a client step was measured to cost.

    Raises:
        CheckpointError: if the checkpoint says something else.
    """
    costs = checkpoint.fields["run"]["client_costs"]
    try:
        return None if costs is None else StepCosts(**costs)
    except TypeError as error:
        raise CheckpointError(f"the checkpoint's client costs cannot be read: {error}") from error


def resumable(
    folder: Path,
    config: RunConfig,
    *,
    or_previous: bool = False,
    say: Callable[[str], None] = log.warning,
) -> Checkpoint:
    """Return the newest checkpoint in ``folder``, if ``config`` can go on from it.

    Args:
        folder: of a run, of its checkpoints, or a checkpoint.
        config: what is to be run.
        or_previous: if the newest cannot be used, take the one before, and so on; otherwise refuse.
        say: told why a checkpoint is passed over.

    Raises:
        CheckpointError: if there is none that can be used, with the reason of the newest; always if
            clients noise their uploads in secret.
    """
    try:
        config.privacy.require_repeatable()
    except UserError as error:
        raise CheckpointError(f"no run goes on from {folder} with secret noise: {error}") from error
    found = find_checkpoints(folder)
    if not found:
        has_result = (Path(folder) / RESULT_FILE).is_file()
        why = "a run that has completed keeps none" if has_result else "checkpoint_every keeps them"
        raise CheckpointError(f"there is no checkpoint in {folder}; {why}")
    first_error: CheckpointError | None = None
    for path in found:
        try:
            checkpoint = read_checkpoint(path)
            _require_same_run(path, checkpoint, config)
        except CheckpointError as error:
            if not or_previous:
                older = len(found) > 1 and "; --resume-previous goes back to the one before"
                raise CheckpointError(f"{error}{older or ''}") from error
            say(str(error))
            first_error = first_error or error
        else:
            return checkpoint
    assert first_error is not None
    raise first_error


def _sizes(federation: Federation) -> list[list[int]]:
    return [[m, size] for m, size in sorted(federation.num_samples.items())]


def _about(config: RunConfig) -> dict[str, Any]:
    return {
        "config_hash": _run_hash(config.to_dict()),
        "config": to_plain(config.to_dict()),
        "stream_version": STREAM_VERSION,
        "versions": {name: importlib.metadata.version(name) for name in ("leansplit", "torch")},
        "written_at": utc_now(),
    }


def _run_hash(config: dict[str, Any]) -> str:
    return config_hash({key: v for key, v in config.items() if key not in _PLACE_KEYS})


def _require_same_run(path: Path, checkpoint: Checkpoint, config: RunConfig) -> None:
    about, run = checkpoint.about, checkpoint.fields.get("run")
    if about.get("config_hash") != _run_hash(config.to_dict()):
        before = about.get("config")
        places = dict.fromkeys(_PLACE_KEYS)
        changes = config_changes(
            {**(before if isinstance(before, dict) else {}), **places},
            {**config.to_dict(), **places},
        )
        raise CheckpointError(f"{path} is of another run ({changes})")
    if about.get("stream_version") != STREAM_VERSION:
        raise CheckpointError(f"{path} was made with another version of the noise stream")
    wanted = {"rounds", "ledger"} | ({"telemetry"} if config.telemetry_every else set())
    if missing := sorted(wanted - checkpoint.tables.keys()):
        raise CheckpointError(f"{path} has no {missing[0]}")
    keys = {"num_exchanges", "elapsed_s", "num_samples", "fixed_checksum", "client_costs"}
    if not isinstance(run, dict) or run.keys() != keys:
        raise CheckpointError(f"{path} does not say where the run stood")
    made_by = about.get("versions")
    if made_by != _about(config)["versions"]:
        log.warning("%s was made by %s: the bits may differ from here on", path, made_by)
