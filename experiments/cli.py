"""The ``leansplit`` command."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leansplit.errors import RunFailedError, UserError, require_choice
from leansplit.experiments.cli_audit import audit
from leansplit.experiments.cli_comparisons import compare, report, sweep, tune
from leansplit.experiments.cli_plan import plan
from leansplit.experiments.command_line import (
    EXIT_INTERRUPTED,
    Commands,
    Faults,
    parse_faults,
    parse_settings,
    say,
    stdout,
)

cli = typer.Typer(
    name="leansplit",
    cls=Commands,
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
    model: Annotated[
        str | None, typer.Option(help="Model; of a text task also a hub name or a folder.")
    ] = None,
    cut: Annotated[
        str | None, typer.Option(help="Last client-side layer, or number of blocks.")
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
    clients_per_node: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Clients that one SuperNode hosts; auto = chosen."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Run on the Ray cluster there; docs/scale-out.md."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key; see `leansplit keys`."),
    ] = None,
    faults: Faults = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on from the newest checkpoint of this run's folder."),
    ] = None,
    resume_previous: Annotated[
        bool, typer.Option(help="With --resume: from the one before, if the newest is damaged.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run one method on one task."""
    from leansplit.experiments.display import progress_bar, result_table
    from leansplit.experiments.predicted_costs import cost_warnings
    from leansplit.experiments.running import results_to_replace, run_and_write
    from leansplit.server_app.checkpoint_files import find_checkpoints, run_folder
    from leansplit.server_app.checkpoints import resumable
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
        "model": model,
        "cut_layer": cut,
        "batch_size": batch_size,
        "client.lr": lr,
        "server.lr": lr,
        "seed": seed,
        "alpha": alpha,
        "partition": None if alpha is None else "dirichlet",
        "workers": workers,
        "clients_per_node": clients_per_node,
        "ray_address": ray_address,
    }
    require_choice("method", method, METHODS)
    if lr is not None:  # stands for both, so a method without one of them takes the other
        named |= {key: None for key in ("client.lr", "server.lr") if not is_used(method, key)}
    settings = {key: value for key, value in named.items() if value is not None}
    settings = {"replica_storage": "worker"} | settings | parse_faults(faults)
    settings |= parse_settings(set_)
    config = run_config(method, settings)
    start = None
    if resume is not None:
        start = resumable(resume, config, or_previous=resume_previous, say=say)
        say(f"goes on from round {start.round}")
        out = out or run_folder(resume)
    elif resume_previous:
        raise UserError("--resume-previous needs --resume DIR")
    out_dir = out or Path("runs") / f"{config.task}-{config.method}-seed-{config.seed}"
    if start is None and (replaced := results_to_replace(config, out_dir)):
        say(replaced)
    console = Console(stderr=True)
    with progress_bar(console, config.method) as on_progress:
        result = run_and_write(config, out_dir, start=start, on_progress=on_progress)
    if as_json:
        sys.stdout.write(json.dumps(to_plain(asdict(result))) + "\n")
    else:
        console = stdout()
        console.print(result_table(result))
        for warning in cost_warnings({result.label: [result]}):
            console.print(f"warning: {warning}", markup=False, soft_wrap=True)
        console.print(f"results in {out_dir}", soft_wrap=True)
    is_left = result.status != "completed" and not config.privacy.is_secret
    if is_left and find_checkpoints(out_dir):
        say(f"the run can go on: add --resume {out_dir}")
    if result.status == "failed":
        raise RunFailedError(result.error or "the run failed")
    if result.status == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


for _command in (compare, tune, sweep, report, plan, audit):
    cli.command()(_command)


@cli.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run of a language model.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")],
) -> None:
    """Write a run's language model with its adapters merged, for `from_pretrained`."""
    from leansplit.experiments.export import export_run

    export_run(run_folder, out)
    stdout().print(f"model in {out}", soft_wrap=True)


@cli.command("methods")
def list_methods() -> None:
    """List the methods."""
    from leansplit.server_app.methods import METHODS

    table = Table("name", "client", "what it does", "source")
    for spec in METHODS.values():
        table.add_row(spec.name, spec.client_order, spec.description, spec.source)
    stdout().print(table)


@cli.command()
def tasks() -> None:
    """List the tasks and models with their options."""
    from leansplit.models import MODELS
    from leansplit.tasks import TASKS

    console = stdout()
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
    stdout().print(table)


def main() -> None:
    """Run the command."""
    cli()
