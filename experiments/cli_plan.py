"""The command that says what a run would cost: plan."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leansplit.errors import UserError, did_you_mean, require_choice
from leansplit.experiments.command_line import (
    Settings,
    parse_names,
    parse_settings,
    say,
    stdout,
)

if TYPE_CHECKING:
    from leansplit.server_app.config import RunConfig
    from leansplit.server_app.planning import Plan, Planner, Problem


def plan(
    methods: Annotated[str, typer.Argument(help="Methods, such as ho-sfl or ho-sfl,sflv2.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Registered model, hub name, folder, or the content or file of a config.json."
        ),
    ] = None,
    cut: Annotated[
        str | None, typer.Option(help="Last client-side layer, or number of blocks.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a client's batch.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a sequence; 128.")] = None,
    image: Annotated[str | None, typer.Option(help="Shape of an image, CxHxW; 3x32x32.")] = None,
    classes: Annotated[int | None, typer.Option(help="Classes; 10, of texts 2.")] = None,
    outputs: Annotated[
        str | None,
        typer.Option(help="Of texts: classes (default), next_token (a prompt), tokens (to write)."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Take shapes from this task, whose data are loaded.")
    ] = None,
    clients: Annotated[int | None, typer.Option(help="Virtual clients in all.")] = None,
    cohort: Annotated[int | None, typer.Option(help="Clients that take part in a round.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of the run.")] = None,
    samples: Annotated[int | None, typer.Option(help="Budget of the run in samples.")] = None,
    set_: Settings = None,
    sweep_cuts: Annotated[
        bool, typer.Option("--sweep-cuts", help="Plan at every cut, and draw the curves.")
    ] = False,
    memory: Annotated[str | None, typer.Option(help="Memory of a device, such as 2GiB.")] = None,
    uplink: Annotated[str | None, typer.Option(help="Its uplink, such as 10Mbit.")] = None,
    downlink: Annotated[str | None, typer.Option(help="Its downlink, such as 50Mbit.")] = None,
    latency: Annotated[str | None, typer.Option(help="A round trip, such as 40ms.")] = None,
    flops: Annotated[str | None, typer.Option(help="Its FLOPs in a second, such as 50G.")] = None,
    conventions: Annotated[
        str | None, typer.Option(help="Also by a published table's conventions: heron.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for plan.json and figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a client step and a run would cost; no weights are loaded, nothing is computed."""
    from leansplit.costs.device import DeviceProfile, read_profile
    from leansplit.experiments.plan_plots import plot_cuts
    from leansplit.experiments.plan_text import (
        advice_values,
        convention_table,
        plan_table,
        plan_values,
        sweep_table,
    )
    from leansplit.server_app.plan_ahead import advise_probe_ahead
    from leansplit.server_app.plan_sweep import sweep_cuts as plan_every_cut
    from leansplit.server_app.plan_time import advise
    from leansplit.server_app.planning import Planner
    from leansplit.server_app.published import CONVENTIONS, by_herons_conventions
    from leansplit.server_app.results import write_files

    given = {"memory": memory, "uplink": uplink, "downlink": downlink, "latency": latency}
    profile = read_profile({**given, "flops": flops}, "--{}")
    profile.require_whole()
    if conventions is not None:
        require_choice("conventions", conventions, CONVENTIONS)
        if sweep_cuts:
            raise UserError("--conventions is for one cut; leave out --sweep-cuts")
    if cut is not None and not cut.strip():
        raise UserError("--cut needs the name of a layer, or a number of blocks")
    if cut is not None and sweep_cuts:
        raise UserError("--sweep-cuts plans every cut; leave out --cut")
    named: dict[str, Any] = {
        "model": model,
        "cut_layer": cut,
        "batch_size": batch_size,
        "clients": clients,
        "cohort": cohort,
        "rounds": rounds,
        "samples": samples,
    }
    settings = {key: value for key, value in named.items() if value is not None}
    settings |= parse_settings(set_)
    configs = _configs(parse_names(methods), settings, task, outputs)
    first = next(iter(configs.values()))
    problem = _problem(first, task, length=length, image=image, classes=classes, outputs=outputs)
    planner = Planner(first, problem)
    console = stdout()
    plans: list[Plan] = []
    notes: list[str] = []
    published: dict[str, Any] = {}
    tables = []
    files: list[Path] = []
    folder = out or (None if as_json or not sweep_cuts else Path("runs") / "plan")
    if sweep_cuts:
        done = plan_every_cut(planner, configs, say=say)
        plans = done.all_plans
        notes = [f"{m} at cut {c}: {reason}" for (m, c), reason in done.refusals.items()]
        tables = [sweep_table(p, done.cuts, profile) for p in done.plans.values() if any(p)]
        if folder is not None:
            files = plot_cuts(done, profile, folder)
    else:
        plans, notes = _planned(planner, configs)
        tables = [plan_table(plans, profile, f"{first.model}, batch {first.batch_size}")]
        if conventions is not None:
            [frozen] = _configs(["frozen"], settings, task, outputs).values()
            inference = planner.plan(frozen)
            found = [by_herons_conventions(p, inference, first.batch_size) for p in plans]
            published = {p.method: asdict(by) for p, by in zip(plans, found, strict=True)}
            tables.append(convention_table(plans, found))
    advice = advise(plans, profile)
    ahead = advise_probe_ahead(planner, configs, plans, profile)
    published_values = {"conventions": {conventions: published}} if published else {}
    values = {
        "plans": [plan_values(found, profile) for found in plans],
        "recommendation": advice_values(advice),
        **({"exchanges": asdict(ahead)} if ahead else {}),
        "notes": notes,
        **published_values,
    }
    if folder is not None:
        write_files(folder, {"plan.json": (json.dumps(values, indent=1) + "\n").encode()})
        files.append(folder / "plan.json")
    if as_json:
        sys.stdout.write(json.dumps(values) + "\n")
        return
    for table in tables:
        console.print(table)
    if sweep_cuts or len(plans) > 1 or profile != DeviceProfile():
        console.print(f"recommendation: {advice.reason}", markup=False, soft_wrap=True)
    if ahead is not None:
        console.print(f"exchanges: {ahead.reason}", markup=False, soft_wrap=True)
    for note in [*notes, _ENVELOPES]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    for file in files:
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)


def _planned(planner: Planner, configs: dict[str, RunConfig]) -> tuple[list[Plan], list[str]]:
    """Return the plans, and why the other methods have none."""
    plans, reasons = [], {}
    for method, config in configs.items():
        try:
            plans.append(planner.plan(config))
        except UserError as error:
            reasons[method] = str(error)
    if not plans:
        raise UserError(next(iter(reasons.values())))
    return plans, [f"{method}: {reason}" for method, reason in reasons.items()]


_ENVELOPES = (
    "traffic is what methods send, without the envelopes of its encoding; memory is live tensors, "
    "without workspaces of libraries; see docs/accounting.md"
)


def _configs(
    methods: list[str], settings: dict[str, Any], task: str | None, outputs: str | None
) -> dict[str, RunConfig]:
    """Return the configuration of each method; a setting goes to the methods that use it."""
    from leansplit.models import MODELS
    from leansplit.server_app.config import run_config
    from leansplit.server_app.methods import METHODS, is_used

    if not methods:
        raise UserError(f"name a method; {did_you_mean('', METHODS)}")
    model = str(settings.get("model", ""))
    if task is None:
        if not model:
            raise UserError("name a model with --model, or a task with --task")
        if model.endswith(".json"):
            settings["model"] = model = _configuration(Path(model))
        is_known = model in MODELS or any(c in model for c in "/{") or Path(model).exists()
        if not is_known and (near := difflib.get_close_matches(model, MODELS, n=1, cutoff=0.7)):
            raise UserError(f"unknown model {model!r}; did you mean {near[0]!r}?")
        takes = MODELS[model].takes if model in MODELS else "tokens"
        of_texts = "generation" if outputs == "tokens" else "text"
        settings["task"] = of_texts if takes == "tokens" else "images"
    else:
        settings["task"] = task
    configs = {}
    for method in dict.fromkeys(methods):
        require_choice("method", method, METHODS)
        alone = len(methods) == 1 and method != "frozen"  # which stands in for inference, too
        used = {
            key: value
            for key, value in settings.items()
            if alone or is_used(method, key) or not any(is_used(m, key) for m in METHODS)
        }
        configs[method] = run_config(method, used)
    return configs


def _configuration(file: Path) -> str:
    """Return the content of a model's configuration file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read the configuration {file}: {reason}") from error
    if not text.lstrip().startswith("{"):
        raise UserError(f"{file} is no model configuration: it holds no JSON object")
    return text


def _problem(
    config: RunConfig,
    task: str | None,
    *,
    length: int | None,
    image: str | None,
    classes: int | None,
    outputs: str | None,
) -> Problem:
    from leansplit.models import MODELS
    from leansplit.server_app.planning import Problem

    given = {"--length": length, "--outputs": outputs, "--image": image, "--classes": classes}
    if task is not None:
        _refuse(given, [*given], f"the task {task} has shapes of its own")
        return Problem.of(config.workload().load_task())
    if MODELS[config.model].takes == "tokens":
        _refuse(given, ["--image"], "the model takes texts")
        if outputs not in (None, "classes"):
            _refuse(given, ["--classes"], f"with --outputs {outputs} a model scores its vocabulary")
        classes = 2 if classes is None else classes
        return Problem.of_texts(128 if length is None else length, outputs or "classes", classes)
    _refuse(given, ["--length", "--outputs"], f"{config.model} takes images")
    sizes = (image or "3x32x32").lower().split("x")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise UserError(f"--image takes channels, height and width as 3x32x32, got {image!r}")
    channels, height, width = map(int, sizes)
    return Problem(
        input_shape=(channels, height, width), num_classes=10 if classes is None else classes
    )


def _refuse(given: dict[str, Any], names: list[str], why: str) -> None:
    """Refuse options that would do nothing."""
    for name in names:
        if given[name] is not None:
            raise UserError(f"{name} does nothing here: {why}; leave it out")
