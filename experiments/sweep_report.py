"""Run a sweep, and write what it says: `sweep.md`, `sweep.csv`, a plot for each metric, a page."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from leansplit.errors import UserError
from leansplit.experiments.experiment import PlannedRun
from leansplit.experiments.figure_style import render
from leansplit.experiments.inline_svg import LINE_THEME
from leansplit.experiments.provenance import value_text
from leansplit.experiments.report import REPORT_FILE, read_runs
from leansplit.experiments.report_page import Picture, report_page, traffic_html
from leansplit.experiments.resume import Say, ShowProgress
from leansplit.experiments.run_all import check_all, run_all
from leansplit.experiments.summary_text import learning_rate_items
from leansplit.experiments.sweep import SWEEP_FILE, Sweep, read_sweep
from leansplit.experiments.sweep_plots import sweep_figure
from leansplit.experiments.sweep_points import Measured, Metric, Point, measure
from leansplit.experiments.table_text import plus_minus
from leansplit.server_app.interruption import stop_on_interrupt
from leansplit.server_app.results import Run, results_folder, write_files

EVERY_VALUE = "any"
"""Stands for the value of a row that does not use the key."""


@dataclass(frozen=True)
class SweepReport:
    """What was written."""

    measured: Measured
    files: list[Path]
    num_failed: int = 0
    is_interrupted: bool = False
    left_out: list[str] = field(default_factory=list)
    """Folders whose results could not be read, with the reason."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must be warned of."""
        return self.measured.warnings

    @property
    def table(self) -> Table:
        """The numbers for a terminal."""
        return sweep_table(self.measured)


def run_sweep(
    sweep: Sweep,
    runs: Sequence[PlannedRun],
    out_dir: Path,
    *,
    jobs: int = 1,
    show_progress: ShowProgress,
    say: Say,
) -> SweepReport:
    """Run what is not there yet, keep going when a run fails, and report; see `compare`.

    Raises:
        UserError: for anything wrong with any run, before the first starts.
        RunFailedError: if no run left a result.
    """
    stop = threading.Event()
    with results_folder(out_dir):
        check_all(runs, jobs)
        with stop_on_interrupt(stop):
            done = run_all(
                runs, out_dir, jobs=jobs, stop=stop, show_progress=show_progress, say=say
            )
            files = write_sweep(out_dir, sweep, done.runs)
    return SweepReport(measure(sweep, done.runs), files, done.num_failed, done.is_interrupted)


def is_sweep(folder: Path) -> bool:
    """Say whether ``folder`` holds the results of a sweep."""
    return (folder / SWEEP_FILE).is_file()


def rebuild_sweep(folder: Path) -> SweepReport:
    """Write tables, plots and page again from the results below ``folder``; nothing is run.

    Results that are no part of the sweep as last run are left alone.

    Raises:
        UserError: if `sweep.json` or all results cannot be read.
    """
    sweep = read_sweep(folder / SWEEP_FILE)
    runs, left_out = read_runs(folder)
    runs = [run for run in runs if run.result.label in sweep.places]
    if not runs:
        raise UserError(f"no results of this sweep below {folder}; run it again")
    return SweepReport(measure(sweep, runs), write_sweep(folder, sweep, runs), left_out=left_out)


def write_sweep(out_dir: Path, sweep: Sweep, runs: Sequence[Run]) -> list[Path]:
    """Write `sweep.json`, `sweep.md`, `sweep.csv`, plots and `report.html`.

    Returns:
        The files for readers.

    Raises:
        UserError: if the runs cannot be compared or ``out_dir`` cannot be written.
    """
    measured = measure(sweep, runs)
    markdown = sweep_markdown(measured)
    contents = {
        SWEEP_FILE: sweep.to_json(),
        "sweep.md": markdown.encode(),
        "sweep.csv": measured.table.to_csv(index=False, lineterminator="\n").encode(),
    }
    pictures: list[Picture] = []
    for metric in measured.metrics:
        figure = sweep_figure(measured, metric)
        for suffix in ("png", "svg"):
            contents[f"sweep_{metric.name}.{suffix}"] = render(figure, suffix)
        pictures.append(
            Picture(
                name=f"sweep-{len(pictures)}",
                figure=figure,
                caption=f"{metric.header} against {sweep.name}.",
                description=f"{metric.header} against {sweep.key}; the numbers are in the tables.",
                theme=LINE_THEME,
            )
        )
    page = report_page(
        runs,
        title=sweep.title,
        markdown=markdown,
        pictures=pictures,
        root=out_dir,
        order=sweep.order,
        details=traffic_html(runs, sweep.order),
    )
    contents[REPORT_FILE] = page.encode("utf-8", "backslashreplace")
    write_files(out_dir, contents)
    return [out_dir / name for name in contents if name != SWEEP_FILE]


def sweep_markdown(measured: Measured) -> str:
    """Return `sweep.md`: one table for each metric, methods down and values across."""
    sweep = measured.sweep
    parts = [f"# {sweep.title}", ""]
    parts += [
        f"Values of {sweep.described}: {', '.join(map(value_text, sweep.values))}.",
        f"A method that does not use it ran once: its number stands under “{EVERY_VALUE}” and "
        "holds for every value.",
    ]
    for metric in measured.metrics:
        parts += ["", f"## {metric.header}", "", *_metric_table(measured, metric)]
    if measured.warnings:
        parts += ["", "## Warnings", "", *(f"- {warning}" for warning in measured.warnings)]
    parts += ["", "## How to read this", ""]
    parts += [
        "- ± is the sample standard deviation over seeds. Only completed runs enter means.",
        "- Every value is a comparison of its own: client gain recovered is against first-order "
        "SFL and the frozen client at the same value.",
        "- Samples and MB to target: a number where every completed seed reached it.",
    ]
    if measured.target_accuracy is None:
        parts.append("- No target accuracy: none was given and no first-order SFL run completed.")
    else:
        parts.append(f"- Target accuracy: {100 * measured.target_accuracy:.1f} %, at every value.")
    parts += learning_rate_items(sweep.learning_rates)
    return "\n".join(parts) + "\n"


def sweep_table(measured: Measured) -> Table:
    """Return final accuracy and total traffic of every point for a terminal."""
    table = Table(title=measured.sweep.title, box=box.SIMPLE_HEAD, pad_edge=False)
    metrics = [m for m in measured.metrics if m.name in ("accuracy_percent", "total_mb")]
    table.add_column("Method")
    for header in (measured.sweep.name, "Seeds", *(metric.header for metric in metrics)):
        table.add_column(header, justify="right")
    for point in measured.points:
        cells = [_number(point, metric) for metric in metrics]
        seeds = f"{point.num_completed}/{point.num_seeds}"
        table.add_row(point.row, _value(point.value), seeds, *cells)
    return table


def _metric_table(measured: Measured, metric: Metric) -> list[str]:
    has_fixed = any(point.value is None for point in measured.points)
    values = [*measured.sweep.values, *([None] if has_fixed else [])]
    cells: dict[str, dict[str, str]] = {}
    for point in measured.points:
        cells.setdefault(point.row, {})[_value(point.value)] = _number(point, metric)
    rows = [["Method", *map(_value, values)], ["---", *["---:"] * len(values)]]
    rows += [[row, *(by.get(_value(v), "") for v in values)] for row, by in cells.items()]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _value(value: Any) -> str:
    return EVERY_VALUE if value is None else value_text(value)


def _number(point: Point, metric: Metric) -> str:
    return plus_minus(point.means[metric.name], point.stds[metric.name], metric.decimals)
