"""The ServerApp, as ``flwr run`` starts it and as our own command does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from leansplit.errors import RunFailedError, UserError
from leansplit.plugins import load_plugins
from leansplit.server_app.checkpoint_files import (
    CHECKPOINTS,
    find_checkpoints,
    remove_checkpoints,
    run_folder,
)
from leansplit.server_app.checkpoints import Checkpoints, resumable
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.interruption import stop_on_interrupt
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.outputs import write_outcome
from leansplit.server_app.recording import Outcome
from leansplit.server_app.results import utc_now
from leansplit.strategies.roster import connected_nodes

_FIRST_NODE_TIMEOUT_S = 60.0

Execute = Callable[[RunConfig, Grid], Outcome]


def server_app(config: RunConfig | None = None, run: Execute = execute) -> ServerApp:
    """Return a ServerApp.

    Args:
        config: what to run; None = read it from Flower's run config.
        run: runs ``config`` on a grid and keeps the outcome; our command passes its own, with
            progress and interruption.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if config is not None:
            run(config, grid)
            return
        _run_for_flower(context, grid)

    return app


def _run_for_flower(context: Context, grid: Grid) -> None:
    """Run what ``flwr run`` asks for, and write what it leaves behind, whatever ends it.

    SIGTERM or Ctrl-C, sent to this process, ends the run after its current round, with a checkpoint
    if it leaves any.

    Raises:
        UserError: for a mistake in what was asked for.
        RunFailedError: if the run did not come to its end: Flower calls a run that returns
            completed.
    """
    config = _from_flower(context, grid)
    checkpoints = _goes_on_from(context, config)
    started_at, stop = utc_now(), threading.Event()
    out = Path(config.out) if config.out else None
    with stop_on_interrupt(stop, takes_over=True):
        outcome = execute(config, grid, stop=stop, checkpoints=checkpoints)
        if out is not None:
            write_outcome(out, outcome, command=["flwr", "run"], started_at=started_at)
            if outcome.status == "completed":
                remove_checkpoints(out)
    if outcome.status == "completed":
        return
    ended = outcome.error or f"the run was {outcome.status} after round {outcome.rounds_completed}"
    can_go_on = out is not None and not config.privacy.is_secret and find_checkpoints(out)
    raise RunFailedError(f"{ended}; it can go on: resume='{out}'" if can_go_on else ended)


def _goes_on_from(context: Context, config: RunConfig) -> Checkpoints | None:
    """Return where checkpoints go, and the one that the run was asked to go on from.

    None without a folder for results: then there is nowhere to keep one.

    Raises:
        UserError: if it cannot go on from there, with the reason.
    """
    folder = str(context.run_config.get("resume", ""))
    or_previous = bool(context.run_config.get("resume_previous", False))
    if not folder:
        if or_previous:
            raise UserError("resume_previous needs resume='/absolute/folder'")
        return Checkpoints(Path(config.out) / CHECKPOINTS) if config.out else None
    start = resumable(_absolute("resume", folder), config, or_previous=or_previous)
    return Checkpoints(Path(config.out) / CHECKPOINTS, start)


def _absolute(key: str, folder: str) -> Path:
    if not Path(folder).is_absolute():
        raise UserError(
            f"{key} must be an absolute folder, got {folder!r}: the SuperLink's working "
            "directory is not yours"
        )
    return Path(folder)


def _from_flower(context: Context, grid: Grid) -> RunConfig:
    """Read Flower's run config: one flat table for all methods, so each takes what it uses."""
    settings: dict[str, Any] = {k: v for k, v in context.run_config.items() if v != ""}
    method = str(settings.pop("method", "ho-sfl"))
    more = _assignments(str(settings.pop("set", "")))
    settings.pop("resume_previous", None)
    if resume := str(settings.pop("resume", "")):
        settings.setdefault("out", str(run_folder(_absolute("resume", resume))))
    if method in METHODS:
        settings = {key: value for key, value in settings.items() if is_used(method, key)}
    settings |= more  # asked for by name, so a key that the method does not use is an error
    if not settings.get("clients"):
        per_node = str(settings.get("clients_per_node", 1))
        if per_node == "auto":
            raise UserError("clients_per_node=auto needs clients: the number of them in all")
        settings["clients"] = len(connected_nodes(grid, 1, _FIRST_NODE_TIMEOUT_S)) * int(per_node)
    config = run_config(method, settings)
    if config.out:
        _absolute("out", config.out)
    return config


def _assignments(text: str) -> dict[str, str]:
    """Read ``key=value; key=value``."""
    settings = {}
    for assignment in filter(None, (part.strip() for part in text.split(";"))):
        key, separator, value = assignment.partition("=")
        if not separator:
            raise UserError(f"set takes key=value pairs separated by ';', got {assignment!r}")
        settings[key.strip()] = value.strip()
    return settings


os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
load_plugins()
app = server_app()
