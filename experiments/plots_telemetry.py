"""Figures of gradient estimates: telemetry of runs, and the estimator study.

The grey lines are theory for Gaussian directions and a linear probe
(:mod:`leansplit.zeroth_order.quality`), not fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from leansplit.experiments.figure_style import (
    COLUMN_INCHES,
    PAGE_INCHES,
    RC,
    in_lines,
    legend_below,
    legend_rows,
    line_style,
    render,
)
from leansplit.experiments.summary import group_runs
from leansplit.server_app.results import Run, check_writable, write_files
from leansplit.server_app.telemetry import read_telemetry

_NUM_POINTS = 20
_THEORY: dict[str, Any] = {"color": "#888888", "linewidth": 0.9, "linestyle": (0, (1, 1.2))}
_LINE: dict[str, Any] = {
    "linewidth": 1.1,
    "markersize": 3.4,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
}
_PERCENTILES = (25, 75)


def plot_telemetry(runs: Sequence[Run], out_dir: Path, order: Sequence[str] = ()) -> list[Path]:
    """Write `telemetry.png` and `telemetry.svg` if any run has telemetry.

    Args:
        runs: as for :func:`leansplit.experiments.plots_accuracy.plot_accuracy`.
        out_dir: created if needed.
        order: methods in the order of the legend.

    Returns:
        The files written: none without telemetry.

    Raises:
        UserError: if a table is damaged, or ``out_dir`` cannot be written.
    """
    tables = telemetry_by_label(runs, order)
    if not tables:
        return []
    check_writable(out_dir)
    figure = telemetry_figure(tables, title=runs[0].result.task)
    contents = {f"telemetry.{suffix}": render(figure, suffix) for suffix in ("png", "svg")}
    write_files(out_dir, contents)
    return [out_dir / name for name in contents]


def telemetry_by_label(runs: Sequence[Run], order: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """Return label -> rows of the completed runs that have telemetry, all seeds together.

    A method whose server estimates too has one label for each part.
    """
    found: dict[str, pd.DataFrame] = {}
    for label, group in group_runs(runs, order).items():
        read = [
            read_telemetry(run.path)
            for run in group
            if run.path is not None and run.result.status == "completed"
        ]
        tables = [table for table in read if table is not None and len(table)]
        if not tables:
            continue
        together = pd.concat(tables, ignore_index=True)
        parts = sorted(together["part"].unique())
        for part in parts:
            name = label if parts == ["client"] else f"{label}, {part}"
            found[name] = together[together["part"] == part]
    return found


def telemetry_figure(tables: dict[str, pd.DataFrame], *, title: str) -> Figure:
    """Return cosine and norm ratio against samples seen, one line for each label.

    A line is the mean over about twenty stretches of the run and all seeds; the band holds the
    middle half of the estimates.
    """
    with mpl.rc_context(RC):
        labels = [*map(in_lines, tables), "expected"]
        height = 3.6 + 0.15 * legend_rows(labels)
        figure = Figure(figsize=(COLUMN_INCHES, height), layout="constrained")
        FigureCanvasAgg(figure)
        cosine, ratio = figure.subplots(2, 1, sharex=True)
        for position, (label, table) in enumerate(tables.items()):
            style = line_style(position)
            for axes, column in ((cosine, "cosine"), (ratio, "norm_ratio")):
                x, mean, low, high = _stretches(table, column)
                shown = in_lines(label) if column == "cosine" else None
                axes.plot(x, mean, label=shown, zorder=3, **_LINE, **style)
                axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
            x, expected, _, _ = _stretches(table, "expected_cosine")
            cosine.plot(x, expected, zorder=2, **_THEORY)
        cosine.plot([], [], label="expected", **_THEORY)
        cosine.axhline(0, color="#444444", linewidth=0.6, zorder=1)
        cosine.set_ylabel("Cosine to the\ntrue gradient")
        cosine.set_title(f"{title}: mean, middle half of estimates", loc="left", color="#444444")
        ratio.axhline(1, color="#444444", linewidth=0.6, zorder=1)
        _log_axis(ratio, "y")
        ratio.set_ylabel("Norm, relative to\nthe true gradient")
        ratio.set_xlabel("Training samples seen, all clients")
        ratio.set_xlim(left=0)
        ratio.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ratio.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        for axes in (cosine, ratio):
            axes.grid(color="#DDDDDD", linewidth=0.5)
            axes.set_axisbelow(True)
        legend_below(figure, labels)
    return figure


def _stretches(table: pd.DataFrame, column: str) -> tuple[Any, Any, Any, Any]:
    """Return (samples, mean, lower quartile, upper quartile) of stretches of a run."""
    defined = table.dropna(subset=[column])
    places = defined["samples_seen"].to_numpy(np.float64)
    if not len(places):
        return (np.empty(0),) * 4
    edges = np.linspace(places.min(), places.max(), _NUM_POINTS + 1)
    stretch = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, _NUM_POINTS - 1)
    groups = [np.flatnonzero(stretch == n) for n in np.unique(stretch)]
    values = defined[column].to_numpy(np.float64)
    low, high = zip(*(np.percentile(values[g], _PERCENTILES) for g in groups), strict=True)
    return (
        np.asarray([places[g].mean() for g in groups]),
        np.asarray([values[g].mean() for g in groups]),
        np.asarray(low),
        np.asarray(high),
    )


def study_figure(table: pd.DataFrame) -> Figure:
    """Return cosine against P, cosine against mu, and norm ratio against mu.

    Args:
        table: rows of :class:`leansplit.experiments.estimator_study.Row`. With several cuts the
            lines of the left panel are the cuts, else the distributions of directions.
    """
    over_p = table[(table["sweep"] == "num_directions") & (table["estimator"] == "forward")]
    over_mu = table[table["sweep"] == "perturbation_scale"]
    num_cuts = table["cut_layer"].nunique()
    with mpl.rc_context(RC):
        figure = Figure(figsize=(PAGE_INCHES, 2.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        if num_cuts > 1:
            over_p = over_p[over_p["direction"] == "gaussian"]
        groups = over_p.groupby("num_elements" if num_cuts > 1 else "direction", sort=True)
        for position, (name, rows) in enumerate(groups):
            label = f"d = {name:,}" if num_cuts > 1 else str(name)
            _line(left, rows, "num_directions", "cosine", label, position, with_spread=True)
        for position, ((size, estimator), rows) in enumerate(
            over_mu.groupby(["num_elements", "estimator"], sort=True)
        ):
            label = f"{estimator}, d = {size:,}" if num_cuts > 1 else str(estimator)
            for axes, column in ((middle, "cosine"), (right, "norm_ratio")):
                _line(axes, rows, "perturbation_scale", column, label, position)
        for axes, column, rows in (
            (left, "num_directions", over_p),
            (middle, "perturbation_scale", over_mu),
        ):
            for position, (_, part) in enumerate(rows.groupby("num_elements")):
                theory = part.drop_duplicates(column).sort_values(column)
                theory_label = None if position else "expected"
                axes.plot(theory[column], theory["expected_cosine"], label=theory_label, **_THEORY)
        swept = f"forward, µ = {over_p['perturbation_scale'].iloc[0]:g}"
        left.set_title(swept, loc="left", color="#444444")
        left.set_xlabel("Directions P")
        left.set_ylabel("Cosine to the true gradient")
        _log_axis(left, "y")
        _log_axis(right, "y")
        middle.set_ylim(bottom=min(0.0, over_mu["cosine"].min()))
        swept = f"gaussian, P = {over_mu['num_directions'].iloc[0]:,}"
        for axes, label in ((middle, "Cosine to the true gradient"), (right, "Norm ratio")):
            axes.set_title(swept, loc="left", color="#444444")
            axes.set_xlabel("Perturbation scale µ")
            axes.set_ylabel(label)
        for axes in (left, middle, right):
            axes.set_xscale("log")
            axes.grid(color="#DDDDDD", linewidth=0.5)
            axes.set_axisbelow(True)
        for axes in (left, middle):
            axes.legend(frameon=False, handlelength=2.6)
    return figure


def _line(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    label: str,
    position: int,
    *,
    with_spread: bool = False,
) -> None:
    rows = rows.sort_values(x)
    style = line_style(position)
    axes.plot(rows[x], rows[y], label=label, zorder=3, **_LINE, **style)
    if with_spread:
        low, high = rows[y] - rows["cosine_std"], rows[y] + rows["cosine_std"]
        axes.fill_between(
            rows[x],
            low.clip(lower=rows[y] / 10),  # a logarithmic axis has no zero
            high,
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )


def _log_axis(axes: Axes, which: str) -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())
