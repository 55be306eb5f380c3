"""What a sweep measured: for every line, value and metric the mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leansplit.experiments.provenance import value_text
from leansplit.experiments.summary import PERCENT, MethodSummary, Summary, summarise
from leansplit.experiments.sweep import Sweep
from leansplit.server_app.budget import MB
from leansplit.server_app.results import Run

ReadRun = Callable[[Run, float], float | None]


@dataclass(frozen=True)
class Metric:
    """One number of a run; units are in the header."""

    name: str
    """Column of `sweep.csv`, end of a file name."""
    header: str
    of_run: ReadRun
    """(run, target accuracy) -> value; None where there is none."""
    of_summary: Callable[[MethodSummary], tuple[float | None, float | None]] | None = None
    """For what one run cannot say alone: (mean, standard deviation) of a summary's row."""
    decimals: int | None = None
    """Digits after the point; None for amounts, which count up from nothing."""
    needs_all_seeds: bool = False
    """A mean over the seeds that reached the target only would flatter the method."""
    is_telemetry: bool = False
    """Only methods with zeroth-order steps have it."""


def _to_target(which: int, unit: float) -> ReadRun:
    def read(run: Run, target: float) -> float | None:
        crossing = run.first_crossing(target)
        return None if crossing is None else crossing[which] / unit

    return read


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _accuracy(run: Run, _target: float) -> float | None:
    return _scaled(run.result.final_accuracy, PERCENT)


def _total_mb(run: Run, _target: float) -> float:
    return (run.result.uplink_bytes + run.result.downlink_bytes) / MB


def _gflops(run: Run, _target: float) -> float | None:
    return _scaled(run.result.client_step_flops, 1e9)


def _memory_mb(run: Run, _target: float) -> float | None:
    return _scaled(run.result.client_peak_memory_bytes, MB)


def _gain(row: MethodSummary) -> tuple[float | None, float | None]:
    return row.gain_recovered_mean_percent, row.gain_recovered_std_percent


METRICS: tuple[Metric, ...] = (
    Metric("accuracy_percent", "Final accuracy (%)", _accuracy, decimals=1),
    Metric(
        "gain_recovered_percent",
        "Client gain recovered (%)",
        lambda _run, _target: None,
        of_summary=_gain,
        decimals=1,
    ),
    Metric("samples_to_target", "Samples to target", _to_target(0, 1), needs_all_seeds=True),
    Metric("mb_to_target", "MB to target", _to_target(1, MB), needs_all_seeds=True),
    Metric("total_mb", "Total traffic (MB)", _total_mb),
    Metric("client_step_gflops", "Client step (GFLOPs)", _gflops),
    Metric("client_peak_memory_mb", "Client peak memory (MB)", _memory_mb),
)


def telemetry_metrics(runs: Sequence[Run]) -> list[Metric]:
    """Return one metric for each mean that the runs' telemetry holds, part by part."""
    names: dict[tuple[str, str], None] = {}
    parts: dict[str, None] = {}
    for run in runs:
        for part, values in _telemetry(run).items():
            for name, value in values.items():
                if name.startswith(("mean_", "expected_")) and isinstance(value, int | float):
                    names[part, name] = None
                    parts[part] = None
    metrics = []
    for part, name in names:
        words = name.removeprefix("mean_").replace("_", " ").capitalize()
        where = f" ({part.replace('_', ' ')})" if len(parts) > 1 else ""
        of = "gradient" if name == "mean_true_norm" else "estimate"
        header = f"{words} of the {of}{where}"
        read = _telemetry_of(part, name)
        metrics.append(Metric(f"{part}_{name}", header, read, decimals=3, is_telemetry=True))
    return metrics


def _telemetry(run: Run) -> dict[str, dict[str, Any]]:
    return run.result.telemetry or {}


def _telemetry_of(part: str, name: str) -> ReadRun:
    def read(run: Run, _target: float) -> float | None:
        value = _telemetry(run).get(part, {}).get(name)
        return float(value) if isinstance(value, int | float) else None

    return read


@dataclass(frozen=True)
class Point:
    """One line of a sweep at one value."""

    row: str
    method: str
    value: Any
    """None: the row does not use the key and holds for every value."""
    num_seeds: int
    num_completed: int
    means: dict[str, float | None]
    """By name of the metric."""
    stds: dict[str, float | None]
    """Sample standard deviation over seeds; None for one."""


@dataclass(frozen=True)
class Measured:
    """A sweep's numbers."""

    sweep: Sweep
    points: tuple[Point, ...]
    """By row, then by value."""
    metrics: tuple[Metric, ...]
    """Those with a number anywhere."""
    target_accuracy: float | None
    warnings: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The content of `sweep.csv`: one line for each point; units are in the column names."""
        rows = []
        for point in self.points:
            line = {"label": point.row, "method": point.method, "key": self.sweep.key}
            counts = {"num_seeds": point.num_seeds, "num_completed": point.num_completed}
            numbers = {}
            for metric in self.metrics:
                numbers[f"{metric.name}_mean"] = point.means[metric.name]
                numbers[f"{metric.name}_std"] = point.stds[metric.name]
            rows.append({**line, "value": _csv_value(point.value), **counts, **numbers})
        return pd.DataFrame(rows).round(6)


def _csv_value(value: Any) -> str:
    return "" if value is None else value_text(value)


def measure(sweep: Sweep, runs: Sequence[Run]) -> Measured:
    """Return the numbers of a sweep. Each value is a comparison of its own, with its own controls.

    The target accuracy is one for all values: the experiment's, else that of `summarise`.

    Raises:
        UserError: if the runs cannot be compared.
    """
    placed = [run for run in runs if run.result.label in sweep.places]
    target = summarise(
        placed, order=sweep.order, target_accuracy=sweep.target_accuracy
    ).target_accuracy
    fixed = [run for run in placed if sweep.places[run.result.label].value is None]
    by_value: list[tuple[Any, Summary]] = []
    for value in sweep.values:
        here = [run for run in placed if sweep.places[run.result.label].value == value]
        if here:
            summary = summarise([*here, *fixed], order=sweep.order, target_accuracy=target)
            by_value.append((value, summary))
    metrics = (*METRICS, *telemetry_metrics(placed))
    points: dict[tuple[str, str], Point] = {}
    for _, summary in by_value:
        for row in summary.rows:
            place = sweep.places[row.label]
            group = [run for run in placed if run.result.label == row.label]
            point = _point(place.row, place.value, row, group, metrics, target)
            before = points.get((place.row, row.label))
            points[place.row, row.label] = point if before is None else _agreed(before, point)
    labels = list(dict.fromkeys(place.row for place in sweep.places.values()))
    rank = {value: i for i, value in enumerate(map(str, sweep.values))}
    ordered = sorted(
        points.values(), key=lambda p: (labels.index(p.row), rank.get(str(p.value), -1))
    )
    return Measured(
        sweep=sweep,
        points=tuple(ordered),
        metrics=tuple(m for m in metrics if any(p.means[m.name] is not None for p in ordered)),
        target_accuracy=target,
        warnings=_warnings(sweep, by_value),
    )


def _point(
    row: str,
    value: Any,
    summary: MethodSummary,
    group: Sequence[Run],
    metrics: Sequence[Metric],
    target: float | None,
) -> Point:
    completed = [run for run in group if run.result.status == "completed"]
    means: dict[str, float | None] = {}
    stds: dict[str, float | None] = {}
    for metric in metrics:
        if metric.of_summary is not None:
            means[metric.name], stds[metric.name] = metric.of_summary(summary)
            continue
        # No accuracy is above infinity: without a target nothing is reached.
        found = [metric.of_run(run, math.inf if target is None else target) for run in completed]
        known = [number for number in found if number is not None]
        if metric.needs_all_seeds and len(known) < len(completed):
            known = []
        means[metric.name] = statistics.fmean(known) if known else None
        stds[metric.name] = statistics.stdev(known) if len(known) > 1 else None
    return Point(row, summary.method, value, len(group), len(completed), means, stds)


def _agreed(one: Point, other: Point) -> Point:
    """Return the point of a row that holds for every value, without what depends on the value."""
    means = {k: v if v == other.means[k] else None for k, v in one.means.items()}
    stds = {k: v if means[k] is not None else None for k, v in one.stds.items()}
    return Point(one.row, one.method, None, one.num_seeds, one.num_completed, means, stds)


def _warnings(sweep: Sweep, by_value: Sequence[tuple[Any, Summary]]) -> tuple[str, ...]:
    """Return what the comparisons at each value warn of; what all say is said once."""
    said: dict[str, list[str]] = {}
    for value, summary in by_value:
        for warning in summary.warnings:
            said.setdefault(warning, []).append(f"{sweep.name} = {value_text(value)}")
    missing = [v for v in sweep.values if v not in [value for value, _ in by_value]]
    return (
        *(f"No result at {sweep.name} = {value_text(value)}." for value in missing),
        *(
            warning if len(values) == len(by_value) > 1 else f"At {', '.join(values)}: {warning}"
            for warning, values in said.items()
        ),
    )
