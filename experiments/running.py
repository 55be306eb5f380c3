"""One run from the command line's point of view: check, launch, write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from leansplit.experiments.preflight import check_run
from leansplit.experiments.runner import FLOWER, Runner
from leansplit.server_app.config import RunConfig
from leansplit.server_app.execution import Progress
from leansplit.server_app.outputs import write_outcome
from leansplit.server_app.results import RunResult, utc_now


def run_and_write(
    config: RunConfig,
    out_dir: Path,
    *,
    label: str = "",
    command: list[str] | None = None,
    runner: Runner = FLOWER,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Run ``config`` and write what it leaves behind, also if it failed or was interrupted.

    ``command`` is recorded as the command that did it; default: this process's.

    Raises:
        UserError: for anything wrong that can be found before workers start.
        RunFailedError: if the simulation engine itself stopped.
    """
    check_run(config, out_dir)
    started_at = utc_now()
    outcome = runner.run(config, on_progress=on_progress)
    return write_outcome(
        out_dir, outcome, command=command or command_line(), started_at=started_at, label=label
    )


def command_line() -> list[str]:
    """Return this process's command without the folder of the program."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
