"""One run from the command line's point of view: check, launch, write."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from leansplit.experiments.interruption import finish_first, stop_on_interrupt
from leansplit.experiments.preflight import check_run
from leansplit.experiments.runner import FLOWER, Runner
from leansplit.server_app.config import RunConfig
from leansplit.server_app.outputs import write_outcome
from leansplit.server_app.recording import Progress
from leansplit.server_app.results import RunResult, results_folder, utc_now


def run_and_write(
    config: RunConfig,
    out_dir: Path,
    *,
    label: str = "",
    command: list[str] | None = None,
    stop: threading.Event | None = None,
    runner: Runner = FLOWER,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Run ``config`` and write what it leaves behind, also if it failed or was interrupted.

    ``command`` is recorded as the command that did it; default: this process's. Ctrl-C and ``stop``
    as in :func:`leansplit.experiments.launch.launch`; what was measured is written whole before
    even a second Ctrl-C aborts. A run that leaves no result leaves no folder.

    Raises:
        UserError: for anything wrong that can be found before workers start.
        RunFailedError: if the simulation engine itself stopped.
    """
    stop = stop or threading.Event()
    with results_folder(out_dir):
        check_run(config)
        started_at = utc_now()
        with stop_on_interrupt(stop):
            outcome = runner.run(config, stop=stop, on_progress=on_progress)
            with finish_first():
                return write_outcome(
                    out_dir,
                    outcome,
                    command=command or command_line(),
                    started_at=started_at,
                    label=label,
                )


def command_line() -> list[str]:
    """Return this process's command without the folder of the program."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
