"""Figures of a comparison: accuracy against samples and against bytes, and who holds which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from leansplit.errors import UserError
from leansplit.experiments.figure_style import (
    BAR_COLOR,
    COLUMN_INCHES,
    GRID_COLOR,
    MARKER,
    PAGE_INCHES,
    RC,
    TITLE_COLOR,
    legend_below,
    legend_columns,
    line_styles,
    literal,
    new_figure,
    render,
    seeds_text,
)
from leansplit.experiments.summary import group_runs
from leansplit.server_app.budget import MB
from leansplit.server_app.results import Run, check_writable, write_files

Floats = npt.NDArray[np.float64]
Axis = Literal["samples", "bytes"]


@dataclass(frozen=True)
class Curve:
    """Mean accuracy of one method over its completed seeds, in percent."""

    label: str
    method: str
    num_seeds: int
    x: Floats  # samples seen, or MB
    mean: Floats
    std: Floats | None  # None for one seed


def plot_accuracy(runs: Sequence[Run], out_dir: Path, order: Sequence[str] = ()) -> list[Path]:
    """Write `accuracy_vs_samples` and `accuracy_vs_bytes`, each as .png and .svg.

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
    axes: tuple[Axis, ...] = ("samples", "bytes")
    for axis in axes:
        figure = accuracy_figure(runs, axis, order)
        for suffix in ("png", "svg"):
            contents[f"accuracy_vs_{axis}.{suffix}"] = render(figure, suffix)
    write_files(out_dir, contents)
    return [out_dir / name for name in contents]


def plot_partition(partition: Mapping[str, Any], out_path: Path) -> Path:
    """Write a picture of who holds which labels, as .png, .svg or .pdf by the suffix.

    Args:
        partition: with ``label_counts``, one entry per client: counts by label, as a list or as a
            mapping from label to count. Optional ``label_names``.
        out_path: the file; its folder is created if needed.

    Raises:
        UserError: for another suffix, missing or ragged counts, or an unwritable folder.
    """
    suffix = out_path.suffix.removeprefix(".")
    if suffix not in ("png", "svg", "pdf"):
        raise UserError(f"cannot draw {out_path.name}: use a name ending in .png, .svg or .pdf")
    write_files(out_path.parent, {out_path.name: render(partition_figure(partition), suffix)})
    return out_path


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
        # Between evaluations the line drawn on a logarithmic axis is straight in log(bytes).
        warp = np.log if axis == "bytes" else np.asarray
        values = np.stack([np.interp(warp(grid), warp(x), y) for x, y in seeds])
        if not grid.size:  # the ranges do not meet: one point, the means of the last evaluations
            grid = np.asarray([np.mean([x[-1] for x, _ in seeds])])
            values = np.asarray([[y[-1]] for _, y in seeds])
        std = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
        method = group[0].result.method
        curves.append(Curve(label, method, len(seeds), grid, values.mean(axis=0), std))
    return curves


def accuracy_figure(runs: Sequence[Run], axis: Axis, order: Sequence[str] = ()) -> Figure:
    """Return accuracy (%) against samples seen or against traffic (MB, logarithmic).

    Raises:
        UserError: if no completed run has an evaluation to show.
    """
    curves = accuracy_curves(runs, axis, order)
    if not curves:
        raise UserError(f"nothing to plot against {axis}: no completed run has evaluations")
    with mpl.rc_context(RC):
        most = max(curve.num_seeds for curve in curves)
        labels = [
            literal(c.label) + ("" if c.num_seeds == most else f" ({seeds_text(c.num_seeds)})")
            for c in curves
        ]
        figure = new_figure(COLUMN_INCHES, 2.45 + 0.15 * -(-len(curves) // legend_columns(labels)))
        axes = figure.add_subplot()
        styles = line_styles([curve.method for curve in curves])
        for position, (curve, label, style) in enumerate(zip(curves, labels, styles, strict=True)):
            axes.plot(
                curve.x,
                curve.mean,
                label=label,
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
        if axis == "bytes":
            axes.set_xscale("log")
            axes.set_xlabel("Traffic, uplink + downlink (MB)")
            ends = [end for curve in curves for end in (curve.x[0], curve.x[-1])]
            subs = (1, 2, 5) if max(ends) < 100 * min(ends) else (1,)
            axes.xaxis.set_major_locator(LogLocator(subs=subs))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlabel("Training samples seen, all clients")
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(color=GRID_COLOR, linewidth=0.5)
        axes.set_axisbelow(True)
        note = f"mean ± 1 std over {seeds_text(most)}" if most > 1 else "one seed"
        axes.set_title(f"{runs[0].result.task}: {note}", loc="left", color=TITLE_COLOR)
        legend_below(figure, labels)
    return figure


def partition_figure(partition: Mapping[str, Any]) -> Figure:
    """Return a matrix shaded by each client's share of labels, with its samples above.

    Shares rather than counts: one large client would leave all others pale. Counts are written
    into the cells as long as they can be read.

    Raises:
        UserError: if ``label_counts`` is missing, empty or ragged.
    """
    counts, names = label_matrix(partition)
    num_labels, num_clients = counts.shape
    with mpl.rc_context(RC):
        width = COLUMN_INCHES if num_clients <= 30 else PAGE_INCHES
        height = 1.5 + min(2.6, 0.16 * max(num_labels, 4))
        figure = new_figure(width, height)
        bars, matrix = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.2])
        sizes = counts.sum(axis=0)
        if num_clients <= 100:
            bars.bar(np.arange(num_clients), sizes, color=BAR_COLOR)
        else:  # gaps would be thinner than a pixel, and one shape draws faster than hundreds
            bars.stairs(sizes, np.arange(num_clients + 1) - 0.5, fill=True, color=BAR_COLOR)
            bars.set_ylim(bottom=0)
        bars.set_ylabel("Samples")
        bars.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        bars.tick_params(axis="x", length=0)
        bars.set_title(
            f"{num_clients} clients, {num_labels} labels, {sizes.sum():,.0f} samples",
            loc="left",
            color=TITLE_COLOR,
        )
        shares = 100 * counts / np.maximum(sizes, 1)
        image = matrix.imshow(
            shares, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest", origin="lower"
        )
        matrix.set_xlabel("Client id")
        matrix.set_ylabel("Label")
        matrix.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        step = -(-num_labels // 20)
        matrix.set_yticks(range(0, num_labels, step), names[::step])
        matrix.spines[["top", "right"]].set_visible(True)
        color_bar = figure.colorbar(image, ax=matrix, pad=0.02, aspect=12)
        color_bar.set_label("Share of client (%)")
        color_bar.locator = MaxNLocator(4, integer=True)
        color_bar.update_ticks()
        if num_clients <= 10 and num_labels <= 12:
            for (label, client), count in np.ndenumerate(counts):
                color = "white" if shares[label, client] > 0.6 * shares.max() else "#333333"
                matrix.text(
                    client, label, f"{count:.0f}", ha="center", va="center", fontsize=6, color=color
                )
    return figure


def label_matrix(partition: Mapping[str, Any]) -> tuple[Floats, list[str]]:
    """Return (labels x clients) counts and the names of the labels.

    Raises:
        UserError: if ``label_counts`` is missing, empty or ragged.
    """
    clients = list(partition.get("label_counts") or [])
    if clients and all(isinstance(client, Mapping) for client in clients):
        labels = sorted({str(k) for client in clients for k in client}, key=_natural)
        clients = [{str(k): v for k, v in client.items()} for client in clients]
        clients = [[client.get(label, 0) for label in labels] for client in clients]
    else:
        labels = [str(label) for label in range(len(clients[0]) if clients else 0)]
    if not labels or any(len(client) != len(labels) for client in clients):
        raise UserError(
            "cannot draw the partition: label_counts must hold, for every client, a count for "
            "every label"
        )
    names = [str(name) for name in partition.get("label_names") or labels]
    counts = np.asarray(clients, dtype=np.float64).T
    return counts, names if len(names) == len(labels) else labels


def _natural(label: str) -> tuple[bool, int, str]:
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


def _points(run: Run, axis: Axis) -> tuple[Floats, Floats] | None:
    """Return (x rising, accuracy in percent) of a completed run; None if there is none to show."""
    if run.result.status != "completed":
        return None
    rounds = run.rounds.dropna(subset=["accuracy"])
    if axis == "bytes":
        x = (rounds["uplink_bytes"] + rounds["downlink_bytes"]).to_numpy(np.float64) / MB
    else:
        x = rounds["samples_seen"].to_numpy(np.float64)
    shown = x > 0 if axis == "bytes" else x >= 0
    accuracy = 100 * rounds["accuracy"].to_numpy(np.float64)
    # An evaluation repeated at the same place (the final one, say) counts once, the last.
    last_at = dict(zip(x[shown].tolist(), accuracy[shown].tolist(), strict=True))
    places = sorted(last_at)
    if not places:
        return None
    return np.asarray(places), np.asarray([last_at[place] for place in places])
