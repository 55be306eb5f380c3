"""The figures of a comparison: accuracy against samples, bytes and simulated time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from leansplit.errors import UserError
from leansplit.experiments.controls import SFL_METHODS, client_order
from leansplit.experiments.figure_style import (
    COLUMN_INCHES,
    GRID_COLOR,
    MARKER,
    PAGE_INCHES,
    RC,
    REFERENCE_STYLE,
    TITLE_COLOR,
    in_lines,
    legend_below,
    legend_rows,
    line_styles,
    literal,
    new_figure,
    panel_legend_below,
    render,
    seeds_text,
)
from leansplit.experiments.summary import group_runs
from leansplit.server_app.budget import MB
from leansplit.server_app.results import Run, check_writable, write_files

Floats = npt.NDArray[np.float64]
Axis = Literal["samples", "bytes", "simulated_time", "client_seconds"]


@dataclass(frozen=True)
class _AxisKind:
    """What an axis shows; a logarithmic one has no place for zero."""

    title: str
    what: str
    """The same in a sentence."""
    values: Callable[[pd.DataFrame], Any]
    """Rounds -> places on the axis; KeyError where they do not say."""
    is_log: bool = True
    is_always: bool = False
    """Whether all runs have it."""


_KINDS: dict[Axis, _AxisKind] = {
    "samples": _AxisKind(
        "Training samples seen, all clients",
        "training samples seen",
        lambda rounds: rounds["samples_seen"],
        is_log=False,
        is_always=True,
    ),
    "bytes": _AxisKind(
        "Traffic, uplink + downlink (MB)",
        "traffic in MB",
        lambda rounds: (rounds["uplink_bytes"] + rounds["downlink_bytes"]) / MB,
        is_always=True,
    ),
    "simulated_time": _AxisKind(
        "Simulated time (s)", "simulated time in seconds", lambda rounds: rounds["simulated_s"]
    ),
    "client_seconds": _AxisKind(
        "Simulated time of all clients together (s)",
        "simulated time of all clients together in seconds",
        lambda rounds: rounds["client_s"],
    ),
}
AXES: dict[Axis, str] = {axis: scale.what for axis, scale in _KINDS.items()}
"""Axis -> what it shows, for sentences."""

_MOST_IN_ONE_PANEL = 8


@dataclass(frozen=True)
class Curve:
    """Mean accuracy of one method over its completed seeds, in percent."""

    label: str
    method: str
    client_order: str  # what clients compute, as in MethodSpec; none for frozen clients
    num_seeds: int
    x: Floats  # samples seen, MB or seconds
    mean: Floats
    std: Floats | None  # None for one seed


def plot_accuracy(runs: Sequence[Run], out_dir: Path, order: Sequence[str] = ()) -> list[Path]:
    """Write `accuracy_vs_samples` and so on for each axis that the runs have, as .png and .svg.

    Args:
        runs: runs of one task, several methods and seeds; only completed ones are drawn.
        out_dir: created if needed.
        order: methods in the order of the legend; others follow as they come.

    Returns:
        The files written.

    Raises:
        UserError: if there is nothing to draw or ``out_dir`` cannot be written.
    """
    check_writable(out_dir)
    contents: dict[str, bytes] = {}
    for axis in AXES:
        if not _KINDS[axis].is_always and not accuracy_curves(runs, axis, order):
            continue
        figure = accuracy_figure(runs, axis, order)
        for suffix in ("png", "svg"):
            contents[f"accuracy_vs_{axis}.{suffix}"] = render(figure, suffix)
    write_files(out_dir, contents)
    return [out_dir / name for name in contents]


def accuracy_curves(runs: Sequence[Run], axis: Axis, order: Sequence[str] = ()) -> list[Curve]:
    """Return one curve per label that has a completed run to show.

    Seeds may have been evaluated at different places (bytes depend on the cohort): each is
    interpolated linearly, on every place where some seed was evaluated within the range that all
    of them cover. Evaluations before any byte crossed have no place on a logarithmic axis.
    """
    curves = []
    for label, group in group_runs(runs, order).items():
        seeds = [points for run in group if (points := _points(run, axis))]
        if not seeds:
            continue
        first, last = max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds)
        grid = np.unique(np.concatenate([x for x, _ in seeds]))
        grid = grid[(grid >= first) & (grid <= last)]
        # Between evaluations the line drawn on a logarithmic axis is straight in log(x).
        warp = np.log if _KINDS[axis].is_log else np.asarray
        values = np.stack([np.interp(warp(grid), warp(x), y) for x, y in seeds])
        if not grid.size:  # the ranges do not meet: one point, the means of the last evaluations
            grid = np.asarray([np.mean([x[-1] for x, _ in seeds])])
            values = np.asarray([[y[-1]] for _, y in seeds])
        std = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
        result = group[0].result
        order_of_clients = client_order(result)
        mean = values.mean(axis=0)
        curves.append(Curve(label, result.method, order_of_clients, len(seeds), grid, mean, std))
    return curves


def accuracy_figure(runs: Sequence[Run], axis: Axis, order: Sequence[str] = ()) -> Figure:
    """Return accuracy (%) against samples seen, or against traffic or time on a logarithmic axis.

    More than eight rows go side by side in two panels, by what clients compute. Frozen clients,
    and SFL beside zeroth-order clients, are in both.

    Raises:
        UserError: if no completed run has an evaluation to show.
    """
    curves = accuracy_curves(runs, axis, order)
    if not curves:
        raise UserError(f"nothing to plot against {axis}: no completed run has evaluations")
    most = max(curve.num_seeds for curve in curves)
    note = f"mean ± 1 std over {seeds_text(most)}" if most > 1 else "one seed"
    title = literal(f"{runs[0].result.task}: {note}")
    with mpl.rc_context(RC):
        panels = _panels(curves)
        if len(panels) == 1:
            labels = _legend_texts(curves, most)
            figure = new_figure(COLUMN_INCHES, 2.45 + 0.15 * legend_rows(labels))
            axes = figure.add_subplot()
            _draw(axes, panels[0], most)
            _scale(axes, axis, curves)
            axes.set_title(title, loc="left", color=TITLE_COLOR)
            legend_below(figure, labels)
            return figure
        legends = [_legend_texts(panel.curves, most) for panel in panels]
        figure = new_figure(PAGE_INCHES, 2.8 + 0.15 * max(map(legend_rows, legends)))
        figure.suptitle(title, x=0.01, ha="left", fontsize=8, color=TITLE_COLOR)
        side_by_side = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, panel, legend in zip(side_by_side, panels, legends, strict=True):
            _draw(axes, panel, most)
            _scale(axes, axis, curves)
            axes.set_title(panel.title, loc="left", color=TITLE_COLOR)
            axes.label_outer()
            panel_legend_below(axes, legend)
    return figure


@dataclass(frozen=True)
class _Panel:
    """Lines that share axes, each with its look."""

    title: str
    curves: Sequence[Curve]
    styles: Sequence[dict[str, Any]]


def _panels(curves: Sequence[Curve]) -> list[_Panel]:
    """Return one panel, or two if there are many curves and clients of both kinds."""
    controls = [curve for curve in curves if curve.client_order == "none"]
    zeroth = [curve for curve in curves if curve.client_order == "zeroth"]
    first = [curve for curve in curves if curve.client_order not in ("none", "zeroth")]
    if len(curves) <= _MOST_IN_ONE_PANEL or not zeroth or not first:
        return [_Panel("", curves, _styles(curves))]
    looks = _styles([*zeroth, *controls])
    sfl = [curve for curve in first if curve.method in SFL_METHODS][:1]
    return [
        _Panel(
            "Clients run forward only",
            [*zeroth, *sfl, *controls],
            [*looks[: len(zeroth)], *([REFERENCE_STYLE] * len(sfl)), *looks[len(zeroth) :]],
        ),
        _Panel("Clients backpropagate", [*first, *controls], _styles([*first, *controls])),
    ]


def _styles(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    return line_styles([curve.client_order == "none" for curve in curves])


def _legend_text(curve: Curve, most: int) -> str:
    """Return a curve's name, with its seeds if it has fewer than the others."""
    fewer = "" if curve.num_seeds == most else f" ({seeds_text(curve.num_seeds)})"
    return in_lines(curve.label + fewer)


def _legend_texts(curves: Sequence[Curve], most: int) -> list[str]:
    return [_legend_text(curve, most) for curve in curves]


def _draw(axes: Axes, panel: _Panel, most: int) -> None:
    """Draw a panel's lines, with their bands."""
    lines = zip(panel.curves, panel.styles, strict=True)
    for position, (curve, style) in enumerate(lines):
        axes.plot(
            curve.x,
            curve.mean,
            label=_legend_text(curve, most),
            linewidth=1.2,
            # Evenly along the drawn line, and side by side where lines are close.
            markevery=(0.03 * (1 + position % 4), 0.14) if len(curve.x) > 2 else None,
            clip_on=False,  # a marker on the axis is drawn whole
            zorder=3,
            **MARKER,
            **style,
        )
        if curve.std is not None:
            low, high = curve.mean - curve.std, curve.mean + curve.std
            axes.fill_between(
                curve.x, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=2
            )
    axes.set_ylabel("Accuracy (%)")
    axes.grid(color=GRID_COLOR, linewidth=0.5)
    axes.set_axisbelow(True)


def _scale(axes: Axes, axis: Axis, curves: Sequence[Curve]) -> None:
    """Scale and name the x axis, for all curves of the figure."""
    axes.set_xlabel(_KINDS[axis].title)
    if _KINDS[axis].is_log:
        axes.set_xscale("log")
        ends = [end for curve in curves for end in (curve.x[0], curve.x[-1])]
        subs = (1, 2, 5) if max(ends) < 100 * min(ends) else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _points(run: Run, axis: Axis) -> tuple[Floats, Floats] | None:
    """Return (x rising, accuracy in percent) of a completed run; None if there is none to show."""
    if run.result.status != "completed":
        return None
    rounds = run.rounds.dropna(subset=["accuracy"])
    try:
        x = _KINDS[axis].values(rounds).to_numpy(np.float64)
    except KeyError:  # without devices no time is told
        return None
    shown = x > 0 if _KINDS[axis].is_log else x >= 0
    accuracy = 100 * rounds["accuracy"].to_numpy(np.float64)
    # An evaluation repeated at the same place (the final one, say) counts once, the last.
    last_at = dict(zip(x[shown].tolist(), accuracy[shown].tolist(), strict=True))
    places = sorted(last_at)
    if not places:
        return None
    return np.asarray(places), np.asarray([last_at[place] for place in places])
