"""The figure of a sweep over cuts: memory, compute and traffic of a client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leansplit.costs.device import DeviceProfile
from leansplit.costs.units import MIB
from leansplit.experiments.controls import FROZEN_METHOD
from leansplit.experiments.figure_style import (
    BAR_COLOR,
    GRID_COLOR,
    MARKER,
    PAGE_INCHES,
    RC,
    TITLE_COLOR,
    legend_below,
    line_styles,
    literal,
    new_figure,
    render,
)
from leansplit.server_app.plan_sweep import Sweep
from leansplit.server_app.planning import Plan
from leansplit.server_app.results import check_writable, write_files

_GIGA, _MB = 1e9, 1e6
_MAX_NAMED = 12
FILE = "plan_cuts"


def plot_cuts(sweep: Sweep, profile: DeviceProfile, out_dir: Path) -> list[Path]:
    """Write ``plan_cuts.png`` and ``.svg``; return them."""
    check_writable(out_dir)
    figure = cuts_figure(sweep, profile)
    contents = {f"{FILE}.{suffix}": render(figure, suffix) for suffix in ("png", "svg")}
    write_files(out_dir, contents)
    return [out_dir / name for name in contents]


def cuts_figure(sweep: Sweep, profile: DeviceProfile) -> Figure:
    """Return three panels over the cuts, a line for each method."""
    shown: dict[str, Callable[[Plan], float]] = {
        "Peak memory (MiB)": lambda p: p.step.peak_memory_bytes / MIB,
        "FLOPs (G)": lambda p: p.step.flops / _GIGA,
        "Traffic (MB)": lambda p: sum(p.client_traffic.values()) / p.steps_per_round / _MB,
    }
    methods = [m for m, plans in sweep.plans.items() if any(plans)]
    are_frozen = [method == FROZEN_METHOD for method in methods]
    titles = [next(p.title for p in sweep.plans[m] if p is not None) for m in methods]
    with mpl.rc_context(RC):
        figure = new_figure(PAGE_INCHES, 2.6 + 0.15 * -(-len(methods) // 2))
        figure.suptitle("One step of a client", fontsize=8, color=TITLE_COLOR)
        panels: Sequence[Axes] = figure.subplots(1, len(shown))
        for axes, (label, value) in zip(panels, shown.items(), strict=True):
            for method, title, style in zip(methods, titles, line_styles(are_frozen), strict=True):
                points = [(i, value(p)) for i, p in enumerate(sweep.plans[method]) if p is not None]
                axes.plot(
                    [i for i, _ in points],
                    [y for _, y in points],
                    label=literal(title) if axes is panels[0] else None,
                    linewidth=1.0,
                    markevery=max(1, len(points) // 8),
                    **(dict(MARKER) | style),
                )
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.grid(axis="y", color=GRID_COLOR, linewidth=0.5)
            axes.set_axisbelow(True)
            _name_cuts(axes, sweep.cuts)
        if profile.memory_bytes is not None:
            limit = profile.memory_bytes / MIB
            panels[0].axhline(limit, color=BAR_COLOR, linewidth=0.8, linestyle=(0, (2, 2)))
            panels[0].annotate(
                "memory",
                (len(sweep.cuts) - 1, limit),
                fontsize=7,
                color=BAR_COLOR,
                ha="right",
                va="bottom",
            )
        legend_below(figure, titles)
    return figure


def _name_cuts(axes: Axes, cuts: Sequence[str]) -> None:
    """Write the cuts' names where they have room, else their places."""
    if len(cuts) <= _MAX_NAMED:
        axes.set_xticks(range(len(cuts)), [literal(cut) for cut in cuts])
        if max(map(len, cuts)) > 2:
            axes.tick_params(axis="x", rotation=60)
        axes.set_xlabel("Cut after layer")
        return
    locator = MaxNLocator(6, integer=True)
    ticks = [int(t) for t in locator.tick_values(0, len(cuts) - 1) if 0 <= t < len(cuts)]
    axes.set_xticks(ticks, [literal(cuts[t]) for t in ticks])
    if max(len(cuts[t]) for t in ticks) > 2:
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlabel("Cut after layer")
