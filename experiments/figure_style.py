"""The one look of all figures: columns of a paper, lines that stay apart without colour.

Figures are drawn with matplotlib's object interface, never through pyplot: nothing global changes,
and no display is needed. Lines differ in colour (safe for colour-blind readers), marker and dash,
so they stay apart in black and white. Sizes suit one column of a two-column page.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

# Okabe and Ito's palette without yellow, which vanishes on white; black comes first.
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", (0, (5, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 1.2)))
FROZEN_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#707070", "marker": "x", "linestyle": (0, (1, 1.2))},
    {"color": "#707070", "marker": "+", "linestyle": (0, (4, 1.2, 1, 1.2))},
)
REFERENCE_STYLE: dict[str, Any] = {"color": "#A0A0A0", "marker": "", "linestyle": "-"}
PAPER = "#FFFFFF"
"""Inside of markers: the page shows through them."""
TITLE_COLOR = "#444444"
GRID_COLOR = "#DDDDDD"
BAR_COLOR = "#555555"
MARKER: Mapping[str, Any] = {
    "markersize": 3.6,
    "markerfacecolor": PAPER,
    "markeredgewidth": 0.9,
}

COLUMN_INCHES = 3.5
PAGE_INCHES = 7.16
LONG_LABEL = 22
"""Characters beside which one column of a page has no room for anything else."""
LONGEST_LINE = 46
"""Characters of a line of a legend that fit in one column of a page."""
_BELOW_AXES_INCHES = 0.4  # of numbers and name of the horizontal axis
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "leansplit",  # the same runs give the same bytes
    "savefig.dpi": 300,
}


def line_style(position: int) -> dict[str, Any]:
    """Return the look of line number ``position``; marker and dash repeat together after 45."""
    return {
        "color": COLORS[position % len(COLORS)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": DASHES[position % len(DASHES)],
    }


def line_styles(is_frozen: Sequence[bool]) -> list[dict[str, Any]]:
    """Return a look for each line; grey ones for frozen clients, which take none from the rest."""
    counts = {True: 0, False: 0}
    styles: list[dict[str, Any]] = []
    for frozen in is_frozen:
        position = counts[frozen]
        style = FROZEN_STYLES[position % len(FROZEN_STYLES)] if frozen else line_style(position)
        styles.append(style)
        counts[frozen] += 1
    return styles


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """Return an empty figure; call and draw within ``mpl.rc_context(RC)``."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


_LEGEND: Mapping[str, Any] = {
    "frameon": False,
    "columnspacing": 1.4,
    "labelspacing": 0.35,
    "handlelength": 3.2,
}


def legend_columns(labels: Sequence[str]) -> int:
    """Return how many columns a legend of these labels has within one column of a page."""
    return 2 if max(map(len, labels)) <= LONG_LABEL else 1


def legend_rows(labels: Sequence[str]) -> int:
    """Return how many rows of text a legend of these labels has."""
    lines = sum(label.count("\n") + 1 for label in labels)
    return -(-lines // legend_columns(labels))


def legend_below(figure: Figure, labels: Sequence[str], **options: Any) -> None:
    """Put the legend under the axes."""
    figure.legend(
        loc="outside lower center", ncols=legend_columns(labels), **{**_LEGEND, **options}
    )


def panel_legend_below(axes: Axes, labels: Sequence[str]) -> None:
    """Put the legend of one panel under it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    # In inches: a share of the axes' height would move as the layout makes room for the legend.
    below = ScaledTranslation(0, -_BELOW_AXES_INCHES, figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axes.transAxes + below,
        ncols=legend_columns(labels),
        **_LEGEND,
    )


def seeds_text(count: int) -> str:
    """Return a count of seeds in words."""
    return f"{count} seed" if count == 1 else f"{count} seeds"


def literal(text: str) -> str:
    """Return ``text`` so that matplotlib draws it as it stands: dollar signs start no formula."""
    return text.replace("$", r"\$")


def in_lines(label: str) -> str:
    """Return a row's name as it stands, in lines that a column of a page has room for."""
    return literal(textwrap.fill(label, LONGEST_LINE))


def render(figure: Figure, suffix: str) -> bytes:
    """Return the figure as png, svg or pdf; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    with mpl.rc_context(RC):
        figure.savefig(buffer, format=suffix, metadata=metadata)
    return buffer.getvalue()
