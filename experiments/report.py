"""Tables, plots and the report page of a comparison, from results alone: nothing is run."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from leansplit.costs.fleet import FleetConfig
from leansplit.errors import UserError
from leansplit.experiments.experiment import slug
from leansplit.experiments.experiment_file import title_with
from leansplit.experiments.plots_accuracy import accuracy_curves, plot_accuracy
from leansplit.experiments.plots_partition import has_labels, plot_partition
from leansplit.experiments.plots_telemetry import plot_telemetry
from leansplit.experiments.report_page import comparison_pictures, report_page, traffic_html
from leansplit.experiments.summary import Summary, is_listed
from leansplit.experiments.summary_text import (
    default_title,
    summary_markdown,
    summary_table,
    write_summary,
)
from leansplit.server_app.results import Run, find_runs, read_run, write_files
from leansplit.server_app.simulated_time import timed

REPORT_FILE = "report.html"
EXPERIMENT_FILE = "experiment.toml"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How results are to be read: what an experiment file says beside its runs."""

    title: str | None = None
    order: Sequence[str] = ()
    """Labels or methods in the order of the tables."""
    target_accuracy: float | None = None
    learning_rates: str | None = None
    """One sentence: how learning rates were chosen."""


@dataclass(frozen=True)
class Report:
    """What was written."""

    summary: Summary
    title: str
    files: list[Path]
    left_out: list[str] = field(default_factory=list)
    """Folders whose results could not be read, with the reason."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must be warned of."""
        return self.summary.warnings

    @property
    def table(self) -> Table:
        """The summary for a terminal."""
        return summary_table(self.summary, self.title)


def write_tables(out_dir: Path, runs: Sequence[Run], reading: Reading) -> Summary:
    """Write `summary.md` and `summary.csv`, and return what they say; errors as `write_report`."""
    return write_summary(
        out_dir,
        runs,
        order=reading.order,
        target_accuracy=reading.target_accuracy,
        learning_rate_note=reading.learning_rates,
        title=reading.title,
    )


def write_report(out_dir: Path, runs: Sequence[Run], reading: Reading) -> Report:
    """Write `summary.*`, the plots that can be drawn, and `report.html`.

    Raises:
        UserError: if the runs cannot be compared or ``out_dir`` cannot be written.
    """
    title = reading.title or default_title(runs)
    summary = write_tables(out_dir, runs, reading)
    files = [out_dir / "summary.md", out_dir / "summary.csv"]
    axes = [axis for axis in ("samples", "bytes") if accuracy_curves(runs, axis, reading.order)]
    if len(axes) == 2:
        files += plot_accuracy(runs, out_dir, reading.order)
    files += plot_telemetry(runs, out_dir, reading.order)
    partitions = [run.result.partition for run in runs if has_labels(run.result.partition)]
    files += [plot_partition(p, out_dir / "partition.png") for p in partitions[:1]]
    page = report_page(
        runs,
        title=title,
        markdown=summary_markdown(summary, runs, reading.learning_rates, title),
        pictures=comparison_pictures(runs, reading.order),
        root=out_dir,
        order=reading.order,
        details=traffic_html(runs, reading.order),
    )
    write_files(out_dir, {REPORT_FILE: page.encode("utf-8", "backslashreplace")})
    return Report(summary, title, [*files, out_dir / REPORT_FILE])


def rebuild_report(root: Path) -> Report:
    """Write tables, plots and page again from the results at or below ``root``.

    An `experiment.toml` in ``root`` gives title, order, target and how rates were chosen.

    Raises:
        UserError: if there is no readable result, or the results cannot be compared.
    """
    runs, reading, left_out = _listed_runs(root)
    report = write_report(root, runs, reading)
    return Report(report.summary, report.title, report.files, left_out)


def report_on_devices(root: Path, fleet: FleetConfig) -> Report:
    """Tell the times of the results at or below ``root`` on other devices; nothing is run.

    Who took part stays as it was. Tables, plots and page go to a folder of their own below
    ``root``; the results are not changed.

    Raises:
        UserError: as :func:`rebuild_report`, or if no time can be told.
    """
    found, reading, left_out = _listed_runs(root)
    runs = []
    for run in found:
        try:
            runs.append(timed(run, fleet) if run.result.status == "completed" else run)
        except UserError as error:
            left_out.append(str(error))
    if not any(run.result.simulated_on for run in runs):
        reason = left_out[-1] if left_out else "none is completed"
        raise UserError(f"no time can be told of the results below {root}: {reason}")
    title = f"{reading.title or default_title(runs)}, on {fleet}"
    # Tables of one name, and one that is called as a preset is, are told apart by their content.
    of_file = f"{Path(fleet.profile).stem}-{fleet.digest()[:8]}"
    profile = of_file if fleet.is_file else fleet.profile
    folder = root / f"on-{slug(str(dataclasses.replace(fleet, profile=profile)))}"
    report = write_report(folder, runs, dataclasses.replace(reading, title=title))
    return Report(report.summary, report.title, report.files, left_out)


def _listed_runs(root: Path) -> tuple[list[Run], Reading, list[str]]:
    """Return the runs of the experiment's rows, how to read them, and what is left out."""
    found, left_out = read_runs(root)
    reading = reading_of(root / EXPERIMENT_FILE)
    runs = [run for run in found if not reading.order or is_listed(run.result, reading.order)]
    if not runs:
        raise UserError(
            f"no result below {root} belongs to a row of its {EXPERIMENT_FILE}; remove that file "
            "to report all of them"
        )
    strangers = dict.fromkeys(run.result.label for run in found if run not in runs)
    left_out += [f"{label}: no row of {EXPERIMENT_FILE} any more" for label in strangers]
    return runs, reading, left_out


def read_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Return the runs at or below ``root``, and why others could not be read.

    Raises:
        UserError: if ``root`` is no folder or holds no readable result.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    for folder in find_runs(root):
        try:
            runs.append(read_run(folder))
        except UserError as error:
            left_out.append(str(error))
    if not runs:
        reason = f": {left_out[0]}" if left_out else "; give the output folder of a comparison"
        raise UserError(f"no results to report below {root}{reason}")
    return runs, left_out


def reading_of(experiment: Path) -> Reading:
    """Return what an experiment file says of how to read its results; nothing if it is not there.

    The file is not checked: its methods may be plug-ins that are not at hand any more.
    """
    content = {}
    with suppress(OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        content = tomllib.loads(experiment.read_text(encoding="utf-8"))
    methods = content.get("methods")
    rows = [row for row in methods if isinstance(row, dict)] if isinstance(methods, list) else []
    target, title = content.get("target_accuracy"), content.get("title")
    rates, overrides = content.get("learning_rates"), content.get("overrides")
    return Reading(
        title=title_with(title, overrides if isinstance(overrides, dict) else {})
        if isinstance(title, str)
        else None,
        order=tuple(
            dict.fromkeys(str(row.get("label", row["method"])) for row in rows if "method" in row)
        ),
        target_accuracy=target if isinstance(target, float) else None,
        learning_rates=rates if isinstance(rates, str) else None,
    )
