"""How the zeroth-order estimate of a client's gradient depends on P, mu, d and the directions.

    python -m leansplit.experiments.estimator_study --task digits --out runs/study

One batch, one model (freshly initialised, or from a run's ``model.safetensors``), no training. The
client model's gradient is estimated from forward passes and compared with the one that
backpropagation gives: once over P at one mu, for all distributions of directions, and once over mu
at one P. Several P share the probes: where P directions are asked for and more were probed,
disjoint groups of P are as many independent estimates.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
import safetensors
import safetensors.torch
import torch
import typer
from torch import Tensor
from torch.func import functional_call

from leansplit.errors import UserError, require_choice, require_positive
from leansplit.experiments.command_line import exit_on_errors, parse_settings
from leansplit.experiments.figure_style import render
from leansplit.experiments.plots_telemetry import study_figure
from leansplit.first_order import server_step
from leansplit.models import SplitModel
from leansplit.noise import (
    Direction,
    derive_seed,
    numpy_generator,
    perturbation_seeds,
    second_moment_inverse,
)
from leansplit.parameters import ParameterDict, ParameterSpec, trainable_parameters
from leansplit.server_app.config import run_config
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.results import write_files
from leansplit.tasks.task import Task
from leansplit.tasks.workload import WorkloadConfig
from leansplit.zeroth_order import (
    DifferentiableObjective,
    EstimateQuality,
    EstimateReport,
    EstimateSum,
    Estimator,
    Objective,
    SumObjective,
    SurrogateObjective,
    ZerothOrderConfig,
    expected_cosine,
    forward_only,
    loss_objective,
    probe,
    quality_of,
    surrogate_objective,
)
from leansplit.zeroth_order.directions import draw_direction

ObjectiveKind = Literal["surrogate", "loss"]
Sweep = Literal["num_directions", "perturbation_scale"]
_MAX_ESTIMATES = 32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is estimated, and how."""

    cut_layer: str
    objective: ObjectiveKind
    """``surrogate``: <lambda, f_c> as HO-SFL's clients probe it, differences taken elementwise at
    the cut; ``loss``: the batch's mean loss as one float32 number, through the server model."""
    direction: Direction
    estimator: Estimator
    perturbation_scale: float
    num_directions: int


@dataclass(frozen=True, kw_only=True)
class Row(Setting):
    """Means over independent estimates; see :mod:`leansplit.zeroth_order.quality`."""

    sweep: Sweep
    """What was varied when this was measured; one sweep's rows share their probes."""
    num_elements: int
    num_estimates: int
    cosine: float
    cosine_std: float
    norm_ratio: float
    projection: float
    relative_variance: float
    expected_cosine: float
    true_norm: float


@dataclass(frozen=True)
class Problem:
    """One batch at one point: what is probed, and its gradient by backpropagation."""

    cut_layer: str
    kind: ObjectiveKind
    objective: Objective
    spec: ParameterSpec
    vector: Tensor
    true_gradient: Tensor


def build_problem(
    workload: WorkloadConfig,
    kind: ObjectiveKind,
    *,
    batch_size: int,
    weights: Path | None = None,
) -> Problem:
    """Draw the batch, load the weights, differentiate.

    Args:
        workload: task, model, cut and seed; its partition is not used.
        kind: what is probed.
        batch_size: training samples, drawn without replacement from the seed.
        weights: a run's ``model.safetensors``; None = as initialised from the seed.

    Raises:
        UserError: if the weights cannot be read or do not fit, or the data are too few.
    """
    task = workload.load_task()
    model = workload.build_model(task)
    if weights is not None:
        model.load_full_state_dict(_read_weights(weights))
    if not 1 <= batch_size <= len(task.train):
        raise UserError(f"batch_size must be from 1 to {len(task.train)}, got {batch_size}")
    generator = numpy_generator(derive_seed(workload.root_seed, "estimator-study"))
    batch = task.train.select(generator.permutation(len(task.train))[:batch_size])
    parameters = trainable_parameters(model.client_model)
    spec = ParameterSpec.of(parameters)
    vector = spec.flatten(parameters)
    probed, differentiable = _objectives(kind, model, task, batch.inputs, batch.labels)
    report = EstimateReport(
        round=1,
        spec=spec,
        vector=vector,
        config=ZerothOrderConfig(),
        probed=[],
        weights={0: 1.0},
        objective=differentiable,
    )
    gradient = report.true_gradient(lambda client_id, local_step: (batch.inputs, batch.labels))
    return Problem(workload.cut_layer, kind, probed, spec, vector, gradient)


def _objectives(
    kind: ObjectiveKind, model: SplitModel, task: Task, inputs: Tensor, labels: Tensor
) -> tuple[Objective, DifferentiableObjective]:
    client_model = model.client_model.eval()
    if kind == "loss":
        full_model = model.full_model.eval()

        def mean_loss(parameters: ParameterDict) -> Tensor:
            return task.loss(functional_call(full_model, parameters, (inputs,)), labels)

        return SumObjective(mean_loss), loss_objective(full_model, task.loss)
    smashed = forward_only(client_model, trainable_parameters(client_model), inputs).clone()
    step = server_step(
        model.server_model.eval(), task.loss, None, [smashed], [labels], [1.0], dropout_seed=0
    )
    gradients = {0: step.smashed_gradients[0]}
    return (
        SurrogateObjective(client_model, inputs, gradients[0]),
        surrogate_objective(client_model, gradients),
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read weights {path}: {error}") from error


def study(
    problem: Problem,
    config: ZerothOrderConfig,
    counts: Sequence[int],
    *,
    sweep: Sweep = "num_directions",
    root_seed: int = 0,
) -> list[Row]:
    """Probe ``max(counts)`` directions and return one row for each P in ``counts``.

    Args:
        problem: what to estimate.
        config: how to probe; its own number of perturbations is not used.
        counts: values of P, rising.
        sweep: what is being varied.
        root_seed: directions derive from it.
    """
    most = max(counts)
    seeds = perturbation_seeds(root_seed, most, round=1)
    differences = probe(problem.objective, problem.spec, problem.vector, seeds, config).tolist()
    size = problem.spec.num_elements
    factor = second_moment_inverse(config.direction, size)
    sums = {p: EstimateSum(size) for p in counts}
    found: dict[int, list[EstimateQuality]] = {p: [] for p in counts}
    for seed, difference in zip(seeds, differences, strict=True):
        direction = draw_direction(seed, size, config.direction, "cpu")
        for p, summed in sums.items():
            if len(found[p]) == _MAX_ESTIMATES:
                continue
            summed.add_(factor * config.slope(difference), direction)
            if summed.num_directions == p:
                found[p].append(
                    quality_of(
                        summed.mean,
                        problem.true_gradient,
                        variance=summed.variance_of_mean,
                        num_directions=p,
                    )
                )
                sums[p] = EstimateSum(size)
    return [_row(problem, config, sweep, found[p]) for p in counts]


def _row(
    problem: Problem, config: ZerothOrderConfig, sweep: Sweep, found: list[EstimateQuality]
) -> Row:
    p = found[0].num_directions
    cosines = [q.cosine for q in found]
    size = problem.spec.num_elements
    return Row(
        cut_layer=problem.cut_layer,
        objective=problem.kind,
        direction=config.direction,
        estimator=config.estimator,
        perturbation_scale=config.perturbation_scale,
        num_directions=p,
        sweep=sweep,
        num_elements=size,
        num_estimates=len(found),
        cosine=statistics.fmean(cosines),
        cosine_std=statistics.stdev(cosines) if len(cosines) > 1 else math.nan,
        norm_ratio=statistics.fmean(q.norm_ratio for q in found),
        projection=statistics.fmean(q.projection for q in found),
        relative_variance=statistics.fmean(q.relative_variance for q in found),
        expected_cosine=expected_cosine(size, p),
        true_norm=found[0].true_norm,
    )


def sweeps(
    counts: Sequence[int], scale: float, scales: Sequence[float], count: int
) -> Iterator[tuple[Sweep, ZerothOrderConfig, list[int]]]:
    """Yield what to probe: all distributions and estimators over P, then estimators over mu."""
    for direction in get_args(Direction):
        for estimator in get_args(Estimator):
            config = ZerothOrderConfig(
                direction=direction, estimator=estimator, perturbation_scale=scale
            )
            yield "num_directions", config, sorted(set(counts))
    for mu in sorted(set(scales)):
        for estimator in get_args(Estimator):
            config = ZerothOrderConfig(estimator=estimator, perturbation_scale=mu)
            yield "perturbation_scale", config, [count]


def study_markdown(rows: Sequence[Row], facts: Sequence[str]) -> str:
    """Return the table with the ``facts`` above it, one line each."""
    header = "cut | d | probed | directions | estimator | mu | P | estimates | cosine | expected"
    header += " | norm ratio | projection"
    cells = [header, " | ".join(["---"] * 5 + ["---:"] * 7)]
    cells += [
        f"{r.cut_layer} | {r.num_elements:,} | {r.objective} | {r.direction} | {r.estimator} | "
        f"{r.perturbation_scale:g} | {r.num_directions:,} | {r.num_estimates} | {r.cosine:.3f} "
        f"± {r.cosine_std:.3f} | {r.expected_cosine:.3f} | {r.norm_ratio:.3g} | "
        f"{r.projection:.3f}"
        for r in rows
    ]
    lines = [f"| {cell} |".replace(" ± nan", "") for cell in cells]
    return "\n".join(["# Estimator study", "", *(f"* {fact}" for fact in facts), "", *lines, ""])


def _numbers(name: str, text: str, kind: type[Any]) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{name} takes numbers such as 1,10,100, got {text!r}") from None
    for value in values:
        require_positive(name, value)
    return values


def main(
    task: Annotated[str, typer.Option(help="Task.")] = "digits",
    cut_layer: Annotated[
        list[str] | None, typer.Option(help="Cut; several compare sizes d of the client model.")
    ] = None,
    num_directions: Annotated[str, typer.Option(help="P to compare.")] = "1,4,16,64,256,1024",
    scale: Annotated[float, typer.Option(help="mu while P varies.")] = 1e-3,
    scales: Annotated[
        str, typer.Option(help="mu to compare.")
    ] = "1e-7,1e-6,1e-5,1e-4,1e-3,1e-2,1e-1,1",
    scales_at: Annotated[int, typer.Option(help="P while mu varies.")] = 256,
    objective: Annotated[str, typer.Option(help="What is probed: surrogate or loss.")] = (
        "surrogate"
    ),
    weights: Annotated[
        Path | None, typer.Option(help="A run's model.safetensors; default: as initialised.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Training samples in the batch.")] = 64,
    seed: Annotated[int, typer.Option(help="Root seed.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for table and plot.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Run keys: model, model_options.…, …"),
    ] = None,
) -> None:
    """Compare estimates of one client gradient with the true one, over P, mu, d, directions."""
    with exit_on_errors():
        counts = _numbers("--num-directions", num_directions, int)
        scale_values = _numbers("--scales", scales, float)
        require_positive("--scale", scale)
        require_positive("--scales-at", scales_at)
        kind: Any = require_choice("objective", objective, get_args(ObjectiveKind))
        torch.set_num_threads(1)
        rows: list[Row] = []
        for cut in cut_layer or [""]:
            settings = {"task": task, "cut_layer": cut, "seed": seed, **parse_settings(set_)}
            workload = run_config("ho-sfl", settings).workload()
            problem = build_problem(workload, kind, batch_size=batch_size, weights=weights)
            for sweep, config, wanted in sweeps(counts, scale, scale_values, scales_at):
                rows += study(problem, config, wanted, sweep=sweep, root_seed=seed)
                sys.stderr.write(f"\r{len(rows)} rows")
        sys.stderr.write("\n")
        versions, _, hardware = collect_environment()
        facts = [
            f"task {task}, model {workload.model}, one batch of {batch_size} training samples, "
            f"seed {seed}, weights {'as initialised' if weights is None else weights.name}",
            f"torch {versions['torch']} (CPU, one thread, {hardware['cpu_model']})",
        ]
        text = study_markdown(rows, facts)
        typer.echo(text)
        if out is not None:
            table = pd.DataFrame([dataclasses.asdict(row) for row in rows])
            figure = study_figure(table)
            contents = {f"estimator_study.{s}": render(figure, s) for s in ("png", "svg")}
            contents["estimator_study.csv"] = table.to_csv(index=False).encode()
            contents["estimator_study.md"] = text.encode()
            write_files(out, contents)


if __name__ == "__main__":
    typer.run(main)
