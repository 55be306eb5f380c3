"""The ServerApp, as ``flwr run`` starts it and as our own command does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from leansplit.errors import RunFailedError, UserError
from leansplit.plugins import load_plugins
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.execution import execute
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
        run: runs a configuration on a grid and keeps the outcome; our command passes its own, with
            progress and interruption.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if config is not None:
            run(config, grid)
            return
        from_flower = _from_flower(context, grid)
        if from_flower.out and not Path(from_flower.out).is_absolute():
            raise UserError(
                f"out must be an absolute folder, got {from_flower.out!r}: the SuperLink's working "
                "directory is not yours"
            )
        started_at = utc_now()
        outcome = run(from_flower, grid)
        if from_flower.out:
            write_outcome(
                Path(from_flower.out), outcome, command=["flwr", "run"], started_at=started_at
            )
        if outcome.status == "failed":
            raise RunFailedError(outcome.error or "the run failed")

    return app


def _from_flower(context: Context, grid: Grid) -> RunConfig:
    """Read Flower's run config: one flat table for all methods, so each takes what it uses."""
    settings: dict[str, Any] = {k: v for k, v in context.run_config.items() if v != ""}
    method = str(settings.pop("method", "ho-sfl"))
    more = _assignments(str(settings.pop("set", "")))
    if method in METHODS:
        settings = {key: value for key, value in settings.items() if is_used(method, key)}
    settings |= more  # asked for by name, so a key that the method does not use is an error
    if not settings.get("clients"):
        per_node = int(str(settings.get("clients_per_node", 1)))
        settings["clients"] = len(connected_nodes(grid, 1, _FIRST_NODE_TIMEOUT_S)) * per_node
    return run_config(method, settings)


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
