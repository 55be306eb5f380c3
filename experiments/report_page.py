"""One page that holds everything: tables, pictures, warnings and where every number comes from.

The page needs nothing beside itself: style and pictures are in it, and it has no scripts. It says
nothing of when or where it was made, so the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from leansplit.experiments.figure_style import PAGE_INCHES
from leansplit.experiments.inline_svg import LINE_THEME, THEME, inline_svg
from leansplit.experiments.markdown_html import sections, table
from leansplit.experiments.plots_accuracy import AXES, accuracy_curves, accuracy_figure
from leansplit.experiments.plots_partition import has_labels, partition_figure
from leansplit.experiments.provenance_html import provenance_html
from leansplit.experiments.summary import group_runs
from leansplit.experiments.traffic_by_kind import (
    MethodTraffic,
    kinds_of,
    traffic_by_kind,
    traffic_figure,
)
from leansplit.server_app.results import Run

_WARNINGS = "Warnings"
_READING = "How to read this"
_REPLACED = "Provenance"  # the page says more than the file


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with what is said of it."""

    name: str
    """Letters, digits and hyphens; its own on the page."""
    figure: Figure
    caption: str
    description: str
    """For those who cannot see it."""
    theme: Mapping[str, str]

    def html(self) -> str:
        """Return the `figure` element."""
        svg = inline_svg(
            self.figure, name=self.name, description=self.description, theme=self.theme
        )
        caption = f"<figcaption>{escape(self.caption)}</figcaption>"
        if self.figure.get_size_inches()[0] < PAGE_INCHES:
            return f"<figure>\n{svg}\n{caption}\n</figure>"
        name = escape(self.caption)
        region = f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        return f'<figure class="wide">\n{region}\n{svg}\n</div>\n{caption}\n</figure>'


def report_page(
    runs: Sequence[Run],
    *,
    title: str,
    markdown: str,
    pictures: Sequence[Picture],
    root: Path,
    order: Sequence[str] = (),
    details: str = "",
) -> str:
    """Return the page.

    Args:
        runs: all runs, also those that failed.
        title: heads the page.
        markdown: the tables, warnings and remarks of `summary.md` or `sweep.md`.
        pictures: drawn below the tables.
        root: the folder that the page is written to; runs are named relative to it.
        order: methods in the order of the tables.
        details: more HTML, after the pictures.
    """
    first, *rest = sections(markdown)
    by_heading = {section.heading: section for section in rest}
    warnings = by_heading.pop(_WARNINGS, None)
    reading = by_heading.pop(_READING, None)
    by_heading.pop(_REPLACED, None)
    body = [
        "<header>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="lede">{escape(_lede(runs, order))}</p>',
        "</header>",
        _navigation(has_pictures=bool(pictures), has_reading=reading is not None),
        "<main>",
    ]
    if warnings is not None:
        heading = f'<h2 id="warnings">{_WARNINGS}</h2>'
        body += [f'<aside class="warnings">{heading}', warnings.html(), "</aside>"]
    body += ['<h2 id="results">Results</h2>', first.html()]
    for section in by_heading.values():
        body += [f"<h3>{escape(section.heading)}</h3>", section.html()]
    if pictures:
        body += ['<h2 id="figures">Figures</h2>', '<div class="figures">']
        body += [*(picture.html() for picture in pictures), "</div>"]
    body += [details]
    if reading is not None:
        body += [f'<h2 id="reading">{_READING}</h2>', reading.html()]
    body += [provenance_html(runs, root, order), "</main>"]
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            *(part for part in body if part),
            f"<footer>Made by leansplit from {_count(len(runs), 'result')}, and from nothing "
            "else.</footer>",
            "</body>",
            "</html>\n",
        ]
    )


def comparison_pictures(runs: Sequence[Run], order: Sequence[str] = ()) -> list[Picture]:
    """Return accuracy against samples, bytes and time, traffic by kind, and the partition."""
    pictures = []
    for axis, what in AXES.items():
        curves = accuracy_curves(runs, axis, order)
        if curves:
            ends = ", ".join(f"{c.label} {c.mean[-1]:.1f} %" for c in curves)
            pictures.append(
                Picture(
                    name=f"accuracy-{axis.replace('_', '-')}",
                    figure=accuracy_figure(runs, axis, order),
                    caption=f"Accuracy against {what}.",
                    description=f"Lines of accuracy against {what}. They end at: {ends}.",
                    theme=LINE_THEME,
                )
            )
    if traffic := traffic_by_kind(runs, order):
        totals = ", ".join(
            f"{row.label} {_mb(sum(row.kind_mb(k) for k in kinds_of(traffic)))} MB"
            for row in traffic
        )
        pictures.append(
            Picture(
                name="traffic",
                figure=traffic_figure(traffic),
                caption="Traffic by kind; the numbers are in the table below.",
                description=f"Stacked bars of traffic by kind of record. Totals: {totals}.",
                theme=THEME,
            )
        )
    partitions = [run for run in runs if has_labels(run.result.partition)]
    if partitions:
        seed = partitions[0].result.root_seed
        sizes = [sum(_counts(client)) for client in partitions[0].result.partition["label_counts"]]
        pictures.append(
            Picture(
                name="partition",
                figure=partition_figure(partitions[0].result.partition),
                caption=f"Who holds which data, seed {seed}.",
                description=(
                    f"Samples and share of labels of each of {len(sizes)} clients; clients hold "
                    f"{min(sizes)} to {max(sizes)} samples."
                ),
                theme=THEME,
            )
        )
    return pictures


def traffic_html(runs: Sequence[Run], order: Sequence[str] = ()) -> str:
    """Return the table of traffic by method, direction and kind; empty without accounts."""
    rows = traffic_by_kind(runs, order)
    if not rows:
        return ""
    kinds = kinds_of(rows)
    header = ["Method", "Direction", *(kind.replace("_", " ") for kind in kinds), "Total"]
    cells = [
        [escape(row.label), direction, *_traffic_cells(row, direction, kinds)]
        for row in rows
        for direction in row.mb
    ]
    caption = "MB by direction and kind, all clients together, mean over completed seeds"
    return f'<h2 id="traffic">Traffic by kind</h2>\n{table(caption, header, cells)}'


def _traffic_cells(row: MethodTraffic, direction: str, kinds: Sequence[str]) -> list[str]:
    by_kind = row.mb[direction]
    cells = [_mb(by_kind[kind]) if kind in by_kind else "0" for kind in kinds]
    return [*cells, _mb(sum(by_kind.values()))]


def _mb(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _counts(client: object) -> list[int]:
    values = client.values() if isinstance(client, Mapping) else client
    assert not isinstance(values, str)
    return [int(value) for value in values]  # type: ignore[attr-defined]


def _lede(runs: Sequence[Run], order: Sequence[str]) -> str:
    results = [run.result for run in runs]
    dates = sorted(result.started_at[:10] for result in results)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    seeds = sorted({result.root_seed for result in results})
    rows = _count(len(group_runs(runs, order)), "row")
    return (
        f"Task {results[0].task}. {rows}, {_count(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))}), {_count(len(runs), 'run')}, {when}."
    )


def _count(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _navigation(*, has_pictures: bool, has_reading: bool) -> str:
    links = {"results": "Results"}
    links |= {"figures": "Figures"} if has_pictures else {}
    links |= {"reading": _READING} if has_reading else {}
    links |= {"settings": "Settings", "runs": "Runs", "environments": "Environments"}
    items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in links.items())
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'
