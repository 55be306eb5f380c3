"""What crossed, by kind: one stacked bar for each method, and the numbers behind it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from leansplit.experiments.figure_style import (
    COLORS,
    COLUMN_INCHES,
    GRID_COLOR,
    LONG_LABEL,
    PAGE_INCHES,
    RC,
    TITLE_COLOR,
    in_lines,
    legend_below,
    new_figure,
)
from leansplit.experiments.summary import group_runs
from leansplit.server_app.budget import MB
from leansplit.server_app.results import Run
from leansplit.wire.kinds import DIRECTIONS, KINDS


def _tint(color: str) -> str:
    red, green, blue = (0.55 + 0.45 * part for part in to_rgb(color))
    return to_hex((red, green, blue))


# Tints of the palette: dark hatches stay visible on them, in grey and on a dark page too.
_FILLS = ("#F8F8F8", *map(_tint, COLORS[1:]))
_EDGE = "#1A1A1A"
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "||||", "++++", "oooo")


@dataclass(frozen=True)
class MethodTraffic:
    """Traffic of one method, the mean over its completed runs."""

    label: str
    mb: Mapping[str, Mapping[str, float]]
    """Direction -> kind -> MB; kinds that never crossed are left out."""

    def kind_mb(self, kind: str) -> float:
        """Return MB of one kind, both ways."""
        return sum(by_kind.get(kind, 0.0) for by_kind in self.mb.values())


def traffic_by_kind(runs: Sequence[Run], order: Sequence[str] = ()) -> list[MethodTraffic]:
    """Return the traffic of every label that has a completed run with accounts."""
    rows = []
    for label, group in group_runs(runs, order).items():
        accounts = [
            run.result.traffic
            for run in group
            if run.result.status == "completed" and run.result.traffic
        ]
        mb: dict[str, dict[str, float]] = {direction: {} for direction in DIRECTIONS}
        for kind in dict.fromkeys(kind for account in accounts for kind in account):
            for direction in DIRECTIONS:
                sizes = [a.get(kind, {}).get(f"{direction}_bytes", 0) for a in accounts]
                if any(sizes):
                    mb[direction][kind] = statistics.fmean(sizes) / MB
        if accounts:
            rows.append(MethodTraffic(label, mb))
    return rows


def kinds_of(rows: Sequence[MethodTraffic]) -> list[str]:
    """Return the kinds that crossed anywhere: the ledger's order, then those of plug-ins."""
    seen = {kind for row in rows for by_kind in row.mb.values() for kind in by_kind}
    return [kind for kind in KINDS if kind in seen] + sorted(seen.difference(KINDS))


def traffic_figure(rows: Sequence[MethodTraffic]) -> Figure:
    """Return MB by kind, both ways, stacked; kinds differ in colour and in hatching."""
    with mpl.rc_context(RC):
        kinds = kinds_of(rows)
        labels = [in_lines(row.label) for row in rows]
        width = COLUMN_INCHES if max(map(len, labels)) <= LONG_LABEL else PAGE_INCHES
        num_lines = sum(label.count("\n") + 1 for label in labels)
        figure = new_figure(width, 1.0 + 0.22 * num_lines + 0.15 * -(-len(kinds) // 2))
        axes = figure.add_subplot()
        left = [0.0] * len(rows)
        for position, kind in enumerate(kinds):
            widths = [row.kind_mb(kind) for row in rows]
            axes.barh(
                range(len(rows)),
                widths,
                left=left,
                height=0.7,
                label=kind.replace("_", " "),
                color=_FILLS[position % len(_FILLS)],
                hatch=_HATCHES[position % len(_HATCHES)],
                edgecolor=_EDGE,
                linewidth=0.5,
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("Uplink + downlink, all clients (MB)")
        axes.set_title("Traffic by kind", loc="left", color=TITLE_COLOR)
        axes.grid(axis="x", color=GRID_COLOR, linewidth=0.5)
        axes.set_axisbelow(True)
        legend_below(figure, [kind.replace("_", " ") for kind in kinds], handlelength=2.2)
    return figure
