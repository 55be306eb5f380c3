"""Run what is not there yet: a run that came to its end and is exactly the planned one is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.experiment import PlannedRun
from leansplit.experiments.running import run_and_write
from leansplit.server_app.config import flatten
from leansplit.server_app.execution import Progress
from leansplit.server_app.results import RESULT_FILE, Run, config_hash, read_run, to_plain

ShowProgress = Callable[[str], AbstractContextManager[Callable[[Progress], None]]]
Say = Callable[[str], None]

_MAX_CHANGES = 4


@dataclass(frozen=True)
class Attempt:
    """What became of a planned run."""

    run: Run | None
    """What it left behind; None if the engine itself stopped."""
    status: Literal["done before", "completed", "interrupted", "failed"]
    error: str | None = None


def run_unless_done(
    planned: PlannedRun,
    out_dir: Path,
    *,
    title: str,
    show_progress: ShowProgress,
    say: Say,
) -> Attempt:
    """Run ``planned`` into its folder below ``out_dir``, unless its result is there.

    A result of another configuration, or of a run that did not come to its end, is replaced, and
    a line says why.

    Raises:
        UserError: for anything wrong that can be found before workers start.
    """
    run_dir = out_dir / planned.folder
    done, why_again = _standing(planned, run_dir)
    if done is not None:
        return Attempt(done, "done before")
    if why_again:
        say(f"{title}: {why_again}; runs again")
    try:
        with show_progress(title) as on_progress:
            result = run_and_write(
                planned.config, run_dir, label=planned.name, on_progress=on_progress
            )
    except RunFailedError as error:
        return Attempt(None, "failed", str(error))
    return Attempt(read_run(run_dir), result.status, result.error)


def _standing(planned: PlannedRun, run_dir: Path) -> tuple[Run | None, str | None]:
    """Return (the finished run, None), or (None, why it must run again; None = it never ran)."""
    if not (run_dir / RESULT_FILE).exists():
        return None, None
    try:
        run = read_run(run_dir)
    except UserError as error:
        return None, str(error)
    if run.result.config_hash != config_hash(planned.config.to_dict()):
        return None, f"its configuration changed ({_changes(run.result.config, planned)})"
    if run.result.status != "completed":
        return None, f"it {'was ' if run.result.status == 'interrupted' else ''}{run.result.status}"
    return run, None


def _changes(before: Mapping[str, Any], planned: PlannedRun) -> str:
    old, new = flatten(before), flatten(to_plain(planned.config.to_dict()))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    changes = [f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys]
    more = len(changes) - _MAX_CHANGES
    return ", ".join(changes[:_MAX_CHANGES]) + (f" and {more} more" if more > 0 else "")
