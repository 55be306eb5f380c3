"""The ``leansplit`` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leansplit.errors import RunFailedError, UserError, require_choice

if TYPE_CHECKING:
    from leansplit.experiments.report import Report
    from leansplit.experiments.sweep_report import SweepReport

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

cli = typer.Typer(
    name="leansplit",
    help="Hybrid-order split federated learning: clients that never run backpropagation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@cli.callback()
def before_any_command(
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|MODULE", help="Load methods of your own; see docs/extending.md."
        ),
    ] = None,
) -> None:
    """Hybrid-order split federated learning: clients that never run backpropagation."""
    from leansplit.plugins import load_plugin, load_plugins

    load_plugins()
    for name in plugin or []:
        load_plugin(name)


def parse_settings(assignments: list[str] | None) -> dict[str, Any]:
    """Read ``key=value`` settings."""
    settings: dict[str, Any] = {}
    for assignment in assignments or []:
        key, separator, value = assignment.partition("=")
        if not separator or not key.strip():
            raise UserError(f"--set takes key=value, got {assignment!r}; try --set client.lr=0.1")
        if key.strip() == "out":
            raise UserError("the folder for results is given with --out, not with --set out=")
        settings[key.strip()] = value.strip()
    return settings


@cli.command()
def run(
    method: Annotated[str, typer.Argument(help="Method; see `leansplit methods`.")],
    task: Annotated[str, typer.Option(help="Task; see `leansplit tasks`.")] = "digits",
    clients: Annotated[int | None, typer.Option(help="Virtual clients in all.")] = None,
    cohort: Annotated[int | None, typer.Option(help="Clients that take part in a round.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Most rounds to run.")] = None,
    samples: Annotated[int | None, typer.Option(help="Budget in samples seen.")] = None,
    megabytes: Annotated[
        float | None, typer.Option(help="Budget of traffic, both directions, in MB (1e6 bytes).")
    ] = None,
    target_accuracy: Annotated[
        float | None, typer.Option(help="End at the first evaluation at or above this fraction.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a client's batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of client and server.")] = None,
    seed: Annotated[int | None, typer.Option(help="Root seed.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Dirichlet concentration; implies partition=dirichlet.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; 0 = one a core, -1 = no Ray, one process.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key; see `leansplit keys`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run one method on one task."""
    from leansplit.experiments.display import progress_bar, result_table
    from leansplit.experiments.running import run_and_write
    from leansplit.server_app.config import run_config
    from leansplit.server_app.methods import METHODS, is_used
    from leansplit.server_app.results import to_plain

    named: dict[str, Any] = {
        "task": task,
        "clients": clients,
        "cohort": cohort,
        "rounds": rounds,
        "samples": samples,
        "megabytes": megabytes,
        "target_accuracy": target_accuracy,
        "batch_size": batch_size,
        "client.lr": lr,
        "server.lr": lr,
        "seed": seed,
        "alpha": alpha,
        "partition": None if alpha is None else "dirichlet",
        "workers": workers,
    }
    require_choice("method", method, METHODS)
    if lr is not None:  # stands for both, so a method without one of them takes the other
        named |= {key: None for key in ("client.lr", "server.lr") if not is_used(method, key)}
    settings = {key: value for key, value in named.items() if value is not None}
    settings = {"replica_storage": "worker"} | settings | parse_settings(set_)
    config = run_config(method, settings)
    out_dir = out or Path("runs") / f"{config.task}-{config.method}-seed-{config.seed}"
    console = Console(stderr=True)
    with progress_bar(console, config.method) as on_progress:
        result = run_and_write(config, out_dir, on_progress=on_progress)
    if as_json:
        sys.stdout.write(json.dumps(to_plain(asdict(result))) + "\n")
    else:
        console = Console()
        console.print(result_table(result))
        console.print(f"results in {out_dir}", soft_wrap=True)
    if result.status == "failed":
        raise RunFailedError(result.error or "the run failed")
    if result.status == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


@cli.command()
def compare(
    experiment: Annotated[str, typer.Argument(help="Experiment file, or a shipped experiment.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these methods or labels, such as ho-sfl,frozen.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Compare methods on one task: every method, every seed, one table and plots."""
    from leansplit.experiments import compare as comparing
    from leansplit.experiments.display import progress_bar
    from leansplit.experiments.experiment import find_experiment, load_experiment
    from leansplit.experiments.summary_text import summary_table
    from leansplit.server_app.results import to_plain

    path = find_experiment(experiment)
    planned = load_experiment(
        path, seeds=_seeds(seeds), overrides=parse_settings(set_), methods=_names(methods)
    )
    out_dir = out or Path("runs") / path.stem
    stderr = Console(stderr=True)
    done = comparing.compare(
        planned,
        out_dir,
        source=path,
        show_progress=lambda title: progress_bar(stderr, title),
        say=lambda line: stderr.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    if as_json:
        rows = [to_plain(asdict(row)) for row in done.summary.rows]
        sys.stdout.write(json.dumps({"rows": rows, "warnings": list(done.summary.warnings)}) + "\n")
    else:
        console = Console()
        console.print(summary_table(done.summary, planned.title))
        for warning in done.summary.warnings:
            console.print(f"note: {warning}", markup=False, soft_wrap=True)
        for file in done.files:
            console.print(str(file), markup=False, highlight=False, soft_wrap=True)
    if done.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if done.num_failed:
        raise RunFailedError(f"{done.num_failed} of {len(planned.runs)} runs failed")


@cli.command()
def tune(
    experiment: Annotated[str, typer.Argument(help="Experiment file, or a shipped experiment.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the best settings into the experiment file.")
    ] = False,
    methods: Annotated[
        str | None, typer.Option(help="Only these methods or labels, such as ho-sfl,frozen.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every run."),
    ] = None,
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
    planned = load_experiment(path, overrides=overrides, methods=_names(methods))
    out_dir = out or Path("runs") / f"{path.stem}-tuning"
    stderr, console = Console(stderr=True), Console()
    done = tuning.tune(
        planned,
        out_dir,
        show_progress=lambda title: progress_bar(stderr, title),
        say=lambda line: stderr.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    files = report.write_tuning(out_dir, done, planned.title)
    console.print(report.tuning_summary(done, planned.title))
    for warning in done.warnings:
        console.print(f"note: {warning}", markup=False, soft_wrap=True)
    if done.is_interrupted:
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


@cli.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with results below it.")],
) -> None:
    """Rebuild tables, plots and report.html from results; nothing is run."""
    from leansplit.experiments.report import rebuild_report
    from leansplit.experiments.sweep_report import is_sweep, rebuild_sweep

    _print_report(rebuild_sweep(folder) if is_sweep(folder) else rebuild_report(folder))


@cli.command()
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
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every run."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
) -> None:
    """Run an experiment over several values of one key: a plot for each metric, one table."""
    from leansplit.experiments.display import progress_bar
    from leansplit.experiments.sweep import base_experiment, plan_sweep
    from leansplit.experiments.sweep_report import run_sweep

    names = _names(methods)
    load = base_experiment(experiment, names, task, seeds=_seeds(seeds))
    planned, runs = plan_sweep(load, over, parse_settings(set_))
    stderr = Console(stderr=True)
    base = Path(experiment).stem if experiment else "-".join([task or "", *names])
    done = run_sweep(
        planned,
        runs,
        out or Path("runs") / f"{base}-over-{planned.key}",
        show_progress=lambda title: progress_bar(stderr, title),
        say=lambda line: stderr.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    _print_report(done)
    if done.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if done.num_failed:
        raise RunFailedError(f"{done.num_failed} of {len(runs)} runs failed")


def _print_report(done: Report | SweepReport) -> None:
    console = Console()
    for reason in done.left_out:
        console.print(f"left out: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(done.table)
    for warning in done.warnings:
        console.print(f"note: {warning}", markup=False, soft_wrap=True)
    for file in done.files:
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)


@cli.command("methods")
def list_methods() -> None:
    """List the methods."""
    from leansplit.server_app.methods import METHODS

    table = Table("name", "client", "what it does", "source")
    for spec in METHODS.values():
        table.add_row(spec.name, spec.client_order, spec.description, spec.source)
    Console().print(table)


@cli.command()
def tasks() -> None:
    """List the tasks and models with their options."""
    from leansplit.models import MODELS
    from leansplit.tasks import TASKS

    console = Console()
    table = Table("task", "model", "what it is", "options (task_options.…)")
    for task in TASKS.values():
        table.add_row(task.name, task.default_model, task.description, ", ".join(task.options))
    console.print(table)
    table = Table("model", "default cut", "what it is", "options (model_options.…)")
    for model in MODELS.values():
        table.add_row(
            model.name, model.default_cut_layer, model.description, ", ".join(model.options)
        )
    console.print(table)


@cli.command()
def keys(
    method: Annotated[
        str | None, typer.Argument(help="Only the keys of this method, with its own defaults.")
    ] = None,
) -> None:
    """List every key that --set and experiment files take, with defaults and meaning."""
    from leansplit.experiments.key_reference import key_rows

    table = Table("key", "default", "meaning")
    for row in key_rows(method):
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def _names(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _seeds(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes whole numbers such as 0,1,2, got {text!r}") from None


def main() -> None:
    """Run the command."""
    with exit_on_errors():
        cli()


@contextmanager
def exit_on_errors() -> Iterator[None]:
    """End the process at an error; a user's mistake is one line on standard error, no traceback."""
    try:
        yield
    except UserError as error:
        _fail(error, EXIT_USER_ERROR)
    except RunFailedError as error:
        _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        sys.stderr.write("leansplit: aborted\n")
        raise SystemExit(EXIT_INTERRUPTED) from None


def _fail(error: Exception, code: int) -> None:
    sys.stderr.write(f"leansplit: error: {' '.join(str(error).split())}\n")
    raise SystemExit(code) from None
