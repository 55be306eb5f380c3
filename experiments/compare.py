"""Run an experiment: every method, every seed, one report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.experiment import Experiment, PlannedRun
from leansplit.experiments.preflight import check_run
from leansplit.experiments.report import EXPERIMENT_FILE, Reading, write_report
from leansplit.experiments.running import run_and_write
from leansplit.experiments.summary import Summary
from leansplit.server_app.execution import Progress
from leansplit.server_app.results import Run, check_writable, config_hash, read_run

ShowProgress = Callable[[str], AbstractContextManager[Callable[[Progress], None]]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to."""

    summary: Summary
    files: list[Path]
    """Summary, plots and report page."""
    num_failed: int
    """Runs that ended without a result."""
    is_interrupted: bool


@dataclass(frozen=True)
class Done:
    """What running a list of planned runs came to."""

    runs: list[Run]
    """Those that left a result, also one of failure."""
    num_failed: int
    is_interrupted: bool


def compare(
    experiment: Experiment,
    out_dir: Path,
    *,
    source: Path | None = None,
    show_progress: ShowProgress,
    say: Say,
) -> Comparison:
    """Run what is not there yet, keep going when a run fails, and report.

    Args:
        experiment: what to run.
        out_dir: one folder below it for each run, the summary and plots in it.
        source: the experiment file, kept beside the results.
        show_progress: title -> a context that yields what a run reports its progress to.
        say: prints one line.

    Raises:
        UserError: for anything wrong with any run, before the first starts.
        RunFailedError: if no run left a result.
    """
    done = run_all(experiment.runs, out_dir, source=source, show_progress=show_progress, say=say)
    reading = Reading(
        title=experiment.title,
        order=experiment.order,
        target_accuracy=experiment.target_accuracy,
        learning_rates=experiment.learning_rates,
    )
    report = write_report(out_dir, done.runs, reading)
    return Comparison(
        summary=report.summary,
        files=report.files,
        num_failed=done.num_failed,
        is_interrupted=done.is_interrupted,
    )


def run_all(
    planned_runs: Sequence[PlannedRun],
    out_dir: Path,
    *,
    source: Path | None = None,
    show_progress: ShowProgress,
    say: Say,
) -> Done:
    """Run what is not there yet and keep going when a run fails; arguments as `compare`.

    Raises:
        UserError: for anything wrong with any run, before the first starts.
        RunFailedError: if no run left a result.
    """
    check_writable(out_dir)
    for planned in planned_runs:
        check_run(planned.config, None)
    if source is not None and source.resolve() != (out_dir / EXPERIMENT_FILE).resolve():
        shutil.copyfile(source, out_dir / EXPERIMENT_FILE)
    runs: list[Run] = []
    num_failed = 0
    is_interrupted = False
    for position, planned in enumerate(planned_runs, start=1):
        title = f"[{position}/{len(planned_runs)}] {planned.label}, seed {planned.config.seed}"
        run_dir = out_dir / planned.folder
        before = _completed(planned, run_dir)
        if before is not None:
            say(f"{title}: done before, {_accuracy(before)}")
            runs.append(before)
            continue
        try:
            with show_progress(title) as on_progress:
                result = run_and_write(
                    planned.config, run_dir, label=planned.label, on_progress=on_progress
                )
        except RunFailedError as error:
            num_failed += 1
            say(f"{title}: FAILED: {error}")
            continue
        runs.append(read_run(run_dir))
        if result.status == "failed":
            num_failed += 1
            say(f"{title}: FAILED: {result.error}")
        else:
            say(f"{title}: {_accuracy(runs[-1])} in {result.wall_time_s:.0f} s")
        if result.status == "interrupted":
            is_interrupted = True
            break
    if not runs:
        raise RunFailedError("no run left a result; the messages above say why")
    return Done(runs, num_failed, is_interrupted)


def _completed(planned: PlannedRun, run_dir: Path) -> Run | None:
    """Return the run in ``run_dir`` if it is exactly the planned one and came to its end."""
    try:
        run = read_run(run_dir)
    except UserError:
        return None
    is_same = run.result.config_hash == config_hash(planned.config.to_dict())
    return run if is_same and run.result.status == "completed" else None


def _accuracy(run: Run) -> str:
    final = run.result.final_accuracy
    return "no accuracy" if final is None else f"accuracy {100 * final:.1f} %"
