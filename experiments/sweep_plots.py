"""Figures of a sweep: one for each metric, one line for each method, error bars over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from leansplit.experiments.controls import FROZEN_METHOD
from leansplit.experiments.figure_style import (
    COLUMN_INCHES,
    GRID_COLOR,
    MARKER,
    RC,
    TITLE_COLOR,
    in_lines,
    legend_below,
    legend_rows,
    line_styles,
    literal,
    new_figure,
    seeds_text,
)
from leansplit.experiments.provenance import value_text
from leansplit.experiments.sweep import are_numbers
from leansplit.experiments.sweep_points import Measured, Metric, Point

_DECADE = 10


def sweep_figure(measured: Measured, metric: Metric) -> Figure:
    """Return one metric against the swept value.

    The axis is logarithmic for numbers above 0 that span more than a decade, else values stand
    side by side. A row that does not use the key is a horizontal line with its spread shaded.
    """
    sweep = measured.sweep
    rows = list(dict.fromkeys(point.row for point in measured.points))
    if metric.is_telemetry:
        has = {point.row for point in measured.points if point.means[metric.name] is not None}
        rows = [row for row in rows if row in has]
    methods = [next(p.method for p in measured.points if p.row == row) for row in rows]
    are_frozen = [method == FROZEN_METHOD for method in methods]
    is_log = are_numbers(sweep.values) and _spans_a_decade(sweep.values)
    places = list(sweep.values) if is_log else list(range(len(sweep.values)))
    with mpl.rc_context(RC):
        labels = [in_lines(row) for row in rows]
        figure = new_figure(COLUMN_INCHES, 2.45 + 0.15 * legend_rows(labels))
        axes = figure.add_subplot()
        for row, label, style in zip(rows, labels, line_styles(are_frozen), strict=True):
            points = [p for p in measured.points if p.row == row]
            shown = [p for p in points if p.means[metric.name] is not None]
            if any(point.value is None for point in points):
                _draw_level(axes, shown, metric, label, style)
                continue
            x = [places[sweep.values.index(p.value)] for p in shown]
            y = [p.means[metric.name] or 0.0 for p in shown]
            axes.plot(x, y, label=label, linewidth=1.2, zorder=3, **MARKER, **style)
            spread = [p.stds[metric.name] or 0.0 for p in shown]
            look = {"ecolor": style["color"], "elinewidth": 0.8, "capsize": 2, "zorder": 2.8}
            axes.errorbar(x, y, yerr=spread, fmt="none", **look)
        if is_log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        texts = [literal(value_text(value)) for value in sweep.values]
        axes.set_xticks(places, texts, rotation=30 if sum(map(len, texts)) > 40 else 0)
        if not is_log:
            axes.set_xlim(-0.4, len(places) - 0.6)
        _scale_costs(axes, measured, metric)
        axes.set_xlabel(literal(sweep.described))
        axes.set_ylabel(literal(metric.header))
        axes.grid(color=GRID_COLOR, linewidth=0.5)
        axes.set_axisbelow(True)
        most = max(point.num_completed for point in measured.points)
        note = f"mean ± 1 std over {seeds_text(most)}" if most > 1 else "one seed"
        axes.set_title(note, loc="left", color=TITLE_COLOR)
        legend_below(figure, labels)
    return figure


def _draw_level(
    axes: Axes, shown: Sequence[Point], metric: Metric, label: str, style: dict[str, Any]
) -> None:
    look = {key: value for key, value in style.items() if key != "marker"}
    if not shown:  # in the legend all the same: a missing line is news
        axes.plot([], [], label=label, **look)
    for point in shown:
        mean, std = point.means[metric.name], point.stds[metric.name]
        assert mean is not None
        axes.axhline(mean, label=label, linewidth=1.2, zorder=2.5, **look)
        if std:
            axes.axhspan(
                mean - std, mean + std, color=style["color"], alpha=0.12, linewidth=0, zorder=2
            )


def _scale_costs(axes: Axes, measured: Measured, metric: Metric) -> None:
    """Give amounts a logarithmic axis where they span decades, else one that starts at zero."""
    if metric.decimals is not None:
        return
    means = [m for p in measured.points if (m := p.means[metric.name]) is not None]
    if _spans_a_decade(means):
        axes.set_yscale("log")
        subs = (1, 2, 5) if max(means) < _DECADE**2 * min(means) else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.04 * axes.get_ylim()[1])  # room for markers of what hardly differs


def _spans_a_decade(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > _DECADE * min(values)
