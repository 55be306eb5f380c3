"""Run an experiment: every method, every seed, one summary."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from leansplit.errors import RunFailedError
from leansplit.experiments.controls import find_controls
from leansplit.experiments.experiment import Experiment
from leansplit.experiments.plots import plot_accuracy, plot_partition
from leansplit.experiments.plots_telemetry import plot_telemetry
from leansplit.experiments.preflight import check_run
from leansplit.experiments.resume import Say, ShowProgress, run_unless_done
from leansplit.experiments.summary import Summary, completed_runs
from leansplit.experiments.summary_text import write_summary
from leansplit.server_app.results import Run, check_writable


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to."""

    summary: Summary
    files: list[Path]
    """Summary and plots."""
    num_failed: int
    """Runs that ended without a result."""
    is_interrupted: bool


def compare(
    experiment: Experiment,
    out_dir: Path,
    *,
    source: Path | None = None,
    show_progress: ShowProgress,
    say: Say,
) -> Comparison:
    """Run what is not there yet, keep going when a run fails, and summarise.

    The summary is written anew after every run, so that there is one to read from the first on.

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
    check_writable(out_dir)
    for planned in experiment.runs:
        check_run(planned.config, None)
    if source is not None and source.resolve() != (out_dir / "experiment.toml").resolve():
        shutil.copyfile(source, out_dir / "experiment.toml")
    runs: list[Run] = []
    num_failed = 0
    is_interrupted = False
    for position, planned in enumerate(experiment.runs, start=1):
        title = f"[{position}/{len(experiment.runs)}] {planned.label}, seed {planned.config.seed}"
        attempt = run_unless_done(
            planned, out_dir, title=title, show_progress=show_progress, say=say
        )
        if attempt.run is not None:
            runs.append(attempt.run)
            if attempt.status != "done before":
                _write_summary(experiment, out_dir, runs)
        if attempt.run is None or attempt.status == "failed":
            num_failed += 1
            say(f"{title}: FAILED: {attempt.error}")
        else:
            took = f" in {attempt.run.result.wall_time_s:.0f} s"
            before = "done before, " if attempt.status == "done before" else ""
            say(f"{title}: {before}{_reached(attempt.run, runs)}{'' if before else took}")
        if attempt.status == "interrupted":
            is_interrupted = True
            break
    if not runs:
        raise RunFailedError("no run left a result; the messages above say why")
    partitions = [run.result.partition for run in runs if run.result.partition]
    return Comparison(
        summary=_write_summary(experiment, out_dir, runs),
        files=[
            out_dir / "summary.md",
            out_dir / "summary.csv",
            *plot_accuracy(runs, out_dir, experiment.order),
            *plot_telemetry(runs, out_dir, experiment.order),
            *(plot_partition(p, out_dir / "partition.png") for p in partitions[:1]),
        ],
        num_failed=num_failed,
        is_interrupted=is_interrupted,
    )


def _write_summary(experiment: Experiment, out_dir: Path, runs: list[Run]) -> Summary:
    return write_summary(
        out_dir,
        runs,
        order=experiment.order,
        target_accuracy=experiment.target_accuracy,
        learning_rate_note=experiment.learning_rates,
    )


def _reached(run: Run, runs: list[Run]) -> str:
    """Say how far a run came; with the client gain once both controls of its seed are there."""
    final = run.result.final_accuracy
    if final is None:
        return "no accuracy"
    gain = find_controls(completed_runs(runs)).gain_recovered(run.result)
    recovered = "" if gain is None else f", client gain recovered {100 * gain:.0f} %"
    return f"accuracy {100 * final:.1f} %{recovered}"
