"""The commands that make and read many runs: compare, tune, sweep, report."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.command_line import (
    EXIT_INTERRUPTED,
    Faults,
    Jobs,
    Methods,
    Seeds,
    Settings,
    parse_faults,
    parse_names,
    parse_seeds,
    parse_settings,
    say,
    stdout,
)

if TYPE_CHECKING:
    from leansplit.experiments.report import Report
    from leansplit.experiments.sweep_report import SweepReport


def compare(
    experiment: Annotated[str, typer.Argument(help="Experiment file, or a shipped experiment.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
    seeds: Seeds = None,
    methods: Methods = None,
    jobs: Jobs = 1,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Run the methods' plain loops, without Flower or messages."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Device of the plain loops, such as cuda; needs --plain.")
    ] = None,
    faults: Faults = None,
    set_: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Compare methods on one task: every method, every seed, one table and plots."""
    from leansplit.experiments import compare as comparing
    from leansplit.experiments.display import progress_bar
    from leansplit.experiments.experiment import find_experiment, load_experiment
    from leansplit.experiments.runner import FLOWER, plain_loops
    from leansplit.experiments.summary_text import summary_table
    from leansplit.server_app.results import to_plain

    if device is not None and not plain:
        raise UserError(
            "--device is for plain loops: add --plain; for clients of a federation give --set "
            "client_device=cuda"
        )
    runner = plain_loops("cpu" if device is None else device) if plain else FLOWER
    path = find_experiment(experiment)
    planned = load_experiment(
        path,
        seeds=parse_seeds(seeds),
        overrides=parse_faults(faults) | parse_settings(set_),
        methods=parse_names(methods),
    )
    out_dir = out or Path("runs") / path.stem
    stderr = Console(stderr=True)
    done = comparing.compare(
        planned.made_by(runner),
        out_dir,
        source=path,
        jobs=jobs,
        show_progress=lambda title: progress_bar(stderr, title),
        say=say,
    )
    if as_json:
        rows = [to_plain(asdict(row)) for row in done.summary.rows]
        sys.stdout.write(json.dumps({"rows": rows, "warnings": list(done.summary.warnings)}) + "\n")
    else:
        console = stdout()
        console.print(summary_table(done.summary, planned.full_title))
        for warning in done.summary.warnings:
            console.print(f"note: {warning}", markup=False, soft_wrap=True)
        for file in done.files:
            console.print(str(file), markup=False, highlight=False, soft_wrap=True)
    if done.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if done.num_failed:
        raise RunFailedError(f"{done.num_failed} of {len(planned.runs)} runs failed")


def tune(
    experiment: Annotated[str, typer.Argument(help="Experiment file, or a shipped experiment.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the best settings into the experiment file.")
    ] = False,
    methods: Methods = None,
    jobs: Jobs = 1,
    set_: Settings = None,
) -> None:
    """Tune every method of an experiment with the same effort, on held-out training data."""
    from leansplit.experiments import tune as tuning
    from leansplit.experiments import tuning_report as report
    from leansplit.experiments.display import progress_bar
    from leansplit.experiments.experiment import find_experiment, load_experiment
    from leansplit.experiments.experiment_file import write_settings
    from leansplit.server_app.results import utc_now

    path = find_experiment(experiment)
    overrides = parse_settings(set_)
    planned = load_experiment(path, overrides=overrides, methods=parse_names(methods))
    out_dir = out or Path("runs") / f"{path.stem}-tuning"
    stderr, console = Console(stderr=True), stdout()
    done = tuning.tune(
        planned,
        out_dir,
        jobs=jobs,
        show_progress=lambda title: progress_bar(stderr, title),
        say=say,
    )
    files = report.write_tuning(out_dir, done, planned.full_title)
    console.print(report.tuning_summary(done, planned.full_title))
    for warning in done.warnings:
        console.print(f"note: {warning}", markup=False, soft_wrap=True)
    if done.is_interrupted:
        say("interrupted: the same command goes on from here")
        raise typer.Exit(EXIT_INTERRUPTED)
    if write and done.chosen:
        in_file = load_experiment(path)  # without what the command line changed
        note = report.learning_rate_note(
            done,
            utc_now()[:10],
            before=(planned.learning_rates or "not recorded.")
            if len(done.chosen) < len(in_file.rows)
            else None,
            overrides=overrides,
        )
        write_settings(path, tuning.settings_to_write(in_file, done), note)
        files.append(path)
    for file in files:
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)
    if len(done.chosen) < len(done.rows):
        raise RunFailedError("a method has no setting that worked; the notes above say why")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with results below it.")],
    fleet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICES",
            help="Tell times on these devices instead, such as mobile,stragglers=0.2 or a CSV "
            "file; repeatable.",
        ),
    ] = None,
) -> None:
    """Rebuild tables, plots and report.html from results; nothing is run."""
    from leansplit.experiments.report import rebuild_report, report_on_devices
    from leansplit.experiments.sweep_report import is_sweep, rebuild_sweep
    from leansplit.server_app.config import fleet_config

    if fleet and is_sweep(folder):
        raise UserError("--fleet is for comparisons; sweep fleet.profile to compare devices")
    fleets = [fleet_config(text) for text in fleet or []]
    for devices in fleets:
        _print_report(report_on_devices(folder, devices))
    if fleets:
        return
    _print_report(rebuild_sweep(folder) if is_sweep(folder) else rebuild_report(folder))


def sweep(
    over: Annotated[
        str, typer.Option(metavar="KEY=V1,V2,…", help="The key to sweep, such as mu, P or alpha.")
    ],
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment file, or a shipped experiment.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", "--method", help="Only these methods, such as ho-sfl,frozen."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Without an experiment: the task.")] = None,
    seeds: Seeds = None,
    set_: Settings = None,
    jobs: Jobs = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
) -> None:
    """Run an experiment over several values of one key: a plot for each metric, one table."""
    from leansplit.experiments.display import progress_bar
    from leansplit.experiments.sweep import DEFAULT_TASK, base_experiment, plan_sweep
    from leansplit.experiments.sweep_report import run_sweep

    names = parse_names(methods)
    load = base_experiment(experiment, names, task, seeds=parse_seeds(seeds))
    planned, runs = plan_sweep(load, over, parse_settings(set_))
    stderr = Console(stderr=True)
    base = Path(experiment).stem if experiment else "-".join([task or DEFAULT_TASK, *names])
    done = run_sweep(
        planned,
        runs,
        out or Path("runs") / f"{base}-over-{planned.key}",
        jobs=jobs,
        show_progress=lambda title: progress_bar(stderr, title),
        say=say,
    )
    _print_report(done)
    if done.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if done.num_failed:
        raise RunFailedError(f"{done.num_failed} of {len(runs)} runs failed")


def _print_report(done: Report | SweepReport) -> None:
    console = stdout()
    for reason in done.left_out:
        console.print(f"left out: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(done.table)
    for warning in done.warnings:
        console.print(f"note: {warning}", markup=False, soft_wrap=True)
    for file in done.files:
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)
