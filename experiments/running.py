"""One run from the command line's point of view: check, launch, write."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from leansplit.errors import UserError
from leansplit.experiments.preflight import check_run
from leansplit.experiments.runner import FLOWER, Runner
from leansplit.server_app.checkpoint_files import (
    CHECKPOINTS,
    Checkpoint,
    find_checkpoints,
    remove_checkpoints,
)
from leansplit.server_app.checkpoints import Checkpoints
from leansplit.server_app.config import RunConfig
from leansplit.server_app.interruption import finish_first, stop_on_interrupt
from leansplit.server_app.key_values import config_changes
from leansplit.server_app.outputs import write_outcome
from leansplit.server_app.recording import Progress
from leansplit.server_app.results import (
    RESULT_FILE,
    RunResult,
    read_run,
    results_folder,
    utc_now,
)


def run_and_write(
    config: RunConfig,
    out_dir: Path,
    *,
    label: str = "",
    command: list[str] | None = None,
    stop: threading.Event | None = None,
    runner: Runner = FLOWER,
    start: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Run ``config`` and write what it leaves behind, also if it failed or was interrupted.

    Checkpoints, if the configuration asks for them, are in the same folder until the run completes;
    with ``start`` it goes on from one. ``command`` is recorded as the command that did it; default:
    this process's. Ctrl-C and ``stop`` as in :func:`leansplit.experiments.launch.launch`; what was
    measured is written whole before even a second Ctrl-C aborts. A run that leaves no result, and
    no checkpoint, leaves no folder.

    Raises:
        UserError: for anything wrong that can be found before workers start.
        RunFailedError: if the simulation engine itself stopped.
    """
    stop = stop or threading.Event()
    with results_folder(out_dir):
        check_run(config)
        started_at = utc_now()
        with stop_on_interrupt(stop):
            outcome = runner.run(
                config,
                stop=stop,
                on_progress=on_progress,
                checkpoints=Checkpoints(out_dir / CHECKPOINTS, start),
            )
            with finish_first():
                result = write_outcome(
                    out_dir,
                    outcome,
                    command=command or command_line(),
                    started_at=started_at,
                    label=label,
                )
                if result.status == "completed":
                    remove_checkpoints(out_dir)
                return result


def results_to_replace(config: RunConfig, out_dir: Path) -> str:
    """Say whose results or checkpoints a run of ``config`` would replace in ``out_dir``, if any."""
    left = find_checkpoints(out_dir)
    instead = "--out names another folder"
    if left:
        round = left[0].name.replace("-", " ")
        instead = f"--resume {out_dir} goes on from its {round}, {instead}"
    if not (out_dir / RESULT_FILE).exists():
        return f"the unfinished run in {out_dir} will be replaced; {instead}" if left else ""
    try:
        result = read_run(out_dir).result
    except UserError as error:
        return f"{out_dir} will be written anew: {error}"
    changes = config_changes(result.config, config.to_dict()) or "of the same configuration"
    return f"the run that is in {out_dir} will be replaced ({changes}); {instead}"


def command_line() -> list[str]:
    """Return this process's command without the folder of the program."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
