"""Run what is not there yet: a run that came to its end and is exactly the planned one is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.experiment import PlannedRun
from leansplit.experiments.launch import IN_PROCESS
from leansplit.experiments.parallel import Job, run_jobs
from leansplit.experiments.runner import Runner
from leansplit.experiments.running import command_line
from leansplit.server_app.checkpoint_files import (
    CHECKPOINTS,
    CheckpointError,
    checkpoint_path,
    find_checkpoints,
)
from leansplit.server_app.checkpoints import resumable
from leansplit.server_app.key_values import config_changes
from leansplit.server_app.recording import Progress
from leansplit.server_app.results import RESULT_FILE, Run, config_hash, read_run

ShowProgress = Callable[[str], AbstractContextManager[Callable[[Progress], None]]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Attempt:
    """What became of a planned run."""

    run: Run | None
    """What it left behind; None if the engine itself stopped, or Ctrl-C came before its start."""
    status: Literal["done before", "completed", "interrupted", "failed"]
    error: str | None = None


def attempt_all(
    planned_runs: Sequence[PlannedRun],
    out_dir: Path,
    *,
    titles: Sequence[str],
    jobs: int,
    stop: threading.Event,
    show_progress: ShowProgress,
    say: Say,
) -> Iterator[tuple[int, Attempt]]:
    """Run each of ``planned_runs`` into its folder below ``out_dir``, unless its result is there.

    A result of another configuration, or of a run that did not come to its end, is replaced, and
    a line says why. A run that left a checkpoint goes on from it.

    Args:
        planned_runs: what to run; already checked.
        out_dir: one folder below it for each run.
        titles: a name for each run, for the lines that are said.
        jobs: runs at a time; above 1 each is in a process of its own, and there is no progress.
        stop: once it is set, no run is started any more; Ctrl-C sets it.
        show_progress: title -> a context that yields what a run reports its progress to.
        say: prints one line.

    Yields:
        (position in ``planned_runs``, what became of it), as runs end; after Ctrl-C also those
        that ended with it, and those that never started.

    Raises:
        UserError: for anything wrong that can be found before workers start.
    """
    waiting: list[Job] = []
    for position, (planned, title) in enumerate(zip(planned_runs, titles, strict=True)):
        run_dir = out_dir / planned.folder
        done, why_again = _standing(planned, run_dir)
        if done is not None:
            yield position, Attempt(done, "done before")
            continue
        if stop.is_set() and jobs == 1:
            yield position, Attempt(None, "interrupted")
            continue
        start = _start(planned, run_dir, title, say)
        if start is not None:
            why = f"{why_again}; " if why_again else ""
            say(f"{title}: {why}goes on from {start.name.replace('-', ' ')}")
        elif why_again:
            say(f"{title}: {why_again}; runs again")
        command = command_line()
        job = Job(position, planned.config, run_dir, planned.name, command, planned.runner, start)
        if jobs > 1:
            waiting.append(job)
            continue
        with show_progress(title) as on_progress:
            attempt = _attempt(job, stop, on_progress)
        yield position, attempt
    for position, outcome in run_jobs(waiting, jobs, stop):
        if isinstance(outcome, UserError):
            raise outcome
        if outcome is None:
            yield position, Attempt(None, "interrupted")
        elif isinstance(outcome, RunFailedError):
            yield position, Attempt(None, "failed", str(outcome))
        else:
            run = read_run(out_dir / planned_runs[position].folder)
            yield position, Attempt(run, outcome.status, outcome.error)


def require_jobs(jobs: int, planned_runs: Sequence[PlannedRun]) -> None:
    """Raise ``UserError`` if the runs cannot be made ``jobs`` at a time."""
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    federated = [planned.config for planned in planned_runs if planned.runner.engine == "flower"]
    if jobs > 1 and any(config.workers != IN_PROCESS for config in federated):
        raise UserError(
            "--jobs above 1 needs runs without Ray, which uses all cores by itself; add "
            "--set workers=-1"
        )


def _attempt(job: Job, stop: threading.Event, on_progress: Callable[[Progress], None]) -> Attempt:
    try:
        result = job.run(stop=stop, on_progress=on_progress)
    except RunFailedError as error:
        return Attempt(None, "failed", str(error))
    return Attempt(read_run(job.out_dir), result.status, result.error)


def _start(planned: PlannedRun, run_dir: Path, title: str, say: Say) -> Path | None:
    """Return the newest checkpoint that a run can go on from; None if there is none."""
    if not planned.config.has_checkpoints or not find_checkpoints(run_dir):
        return None
    try:
        checkpoint = resumable(
            run_dir,
            planned.config,
            or_previous=True,
            say=lambda reason: say(f"{title}: {reason}"),
        )
    except CheckpointError:
        return None  # each has been said
    return checkpoint_path(run_dir / CHECKPOINTS, checkpoint.round)


def _standing(planned: PlannedRun, run_dir: Path) -> tuple[Run | None, str | None]:
    """Return (the finished run, None), or (None, why it must run again; None = it never ran)."""
    if not (run_dir / RESULT_FILE).exists():
        return None, None
    try:
        run = read_run(run_dir)
    except UserError as error:
        return None, str(error)
    if run.result.config_hash != config_hash(planned.config.to_dict()):
        changes = config_changes(run.result.config, planned.config.to_dict())
        return None, f"its configuration changed ({changes})"
    if (made_by := Runner.of(run.result)) != planned.runner:
        return None, f"it was made by {made_by}, not by {planned.runner}"
    if run.result.status != "completed":
        return None, f"it {'was ' if run.result.status == 'interrupted' else ''}{run.result.status}"
    return run, None
