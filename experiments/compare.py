"""Run an experiment: every method, every seed, one report."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from leansplit.experiments.controls import find_controls
from leansplit.experiments.experiment import Experiment
from leansplit.experiments.experiment_file import copy_with_overrides
from leansplit.experiments.fairness import ended_at_target
from leansplit.experiments.report import EXPERIMENT_FILE, Reading, write_report, write_tables
from leansplit.experiments.resume import Say, ShowProgress
from leansplit.experiments.run_all import accuracy_text, check_all, run_all
from leansplit.experiments.summary import Summary, completed_runs
from leansplit.server_app.interruption import stop_on_interrupt
from leansplit.server_app.results import Run, results_folder


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to."""

    summary: Summary
    files: list[Path]
    """Summary, plots and report page."""
    num_failed: int
    """Runs that ended without a result."""
    is_interrupted: bool


def compare(
    experiment: Experiment,
    out_dir: Path,
    *,
    source: Path | None = None,
    jobs: int = 1,
    show_progress: ShowProgress,
    say: Say,
) -> Comparison:
    """Run what is not there yet, keep going when a run fails, and report.

    The summary is written anew after every run, so that there is one to read from the first on. The
    first Ctrl-C ends the run that goes on, starts no other, and reports; the second aborts.

    Args:
        experiment: what to run.
        out_dir: one folder below it for each run, the summary and plots in it.
        source: the experiment file, kept beside the results.
        jobs: runs at a time; see :func:`leansplit.experiments.resume.attempt_all`.
        show_progress: title -> a context that yields what a run reports its progress to.
        say: prints one line.

    Raises:
        UserError: for anything wrong with any run, before the first starts.
        RunFailedError: if no run left a result.
    """
    reading = Reading(
        title=experiment.full_title,
        order=experiment.order,
        target_accuracy=experiment.target_accuracy,
        learning_rates=experiment.learning_rates,
    )
    stop = threading.Event()
    with results_folder(out_dir):
        check_all(experiment.runs, jobs)
        if source is not None and source.resolve() != (out_dir / EXPERIMENT_FILE).resolve():
            copy_with_overrides(source, out_dir / EXPERIMENT_FILE, experiment.overrides)
        with stop_on_interrupt(stop):
            done = run_all(
                experiment.runs,
                out_dir,
                jobs=jobs,
                stop=stop,
                show_progress=show_progress,
                say=say,
                describe=_reached,
                on_new_run=lambda runs: write_tables(out_dir, runs, reading),
            )
            report = write_report(out_dir, done.runs, reading)
    return Comparison(
        summary=report.summary,
        files=report.files,
        num_failed=done.num_failed,
        is_interrupted=done.is_interrupted,
    )


def _reached(run: Run, runs: list[Run]) -> str:
    """Say how far a run came; with the client gain once both controls of its seed are there."""
    completed = completed_runs(runs)
    gain = find_controls(completed).gain_recovered(run.result)
    if ended_at_target(completed):
        gain = None  # accuracies are then the target's own
    recovered = "" if gain is None else f", client gain recovered {100 * gain:.0f} %"
    return accuracy_text(run, runs) + recovered
