"""Progress and results for people: one bar for each run, one table for a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from leansplit.costs.units import in_words
from leansplit.experiments.privacy_text import privacy_rows
from leansplit.experiments.summary import boundaries_text
from leansplit.server_app import recording
from leansplit.server_app.results import RunResult

_MB = 1e6
_MEASURES = {"f1": "macro F1", "bleu": "BLEU", "rouge_l": "ROUGE-L"}
"""A task's further metrics -> what a reader calls them, where that is not the name."""


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[recording.Progress], None]]:
    """Show a bar with accuracy, samples, traffic and time left; yields what moves it."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,  # else a log gets an empty line for each run
    )
    started = time.monotonic()
    with bar:
        task_id = bar.add_task(title, total=1.0, status="starting")

        def show(progress: recording.Progress) -> None:
            done = progress.share_done
            accuracy = "–" if progress.accuracy is None else f"{100 * progress.accuracy:.1f} %"
            parts = [
                f"round {progress.round}",
                f"accuracy {accuracy}",
                f"{progress.samples_seen:,} samples",
                f"{progress.num_bytes / _MB:,.1f} MB",
            ]
            if 0 < done < 1:
                left_s = (time.monotonic() - started) * (1 - done) / done
                at_most = "at most " if progress.budget.target_accuracy else ""
                parts.append(f"{at_most}{left_s:.0f} s left")
            bar.update(task_id, completed=done, status="  ".join(parts))

        yield show


def result_table(result: RunResult) -> Table:
    """Return what one run came to."""
    table = Table(title=f"{result.label} on {result.task}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f} %"

    rows = {
        "status": result.status,
        "ended by": result.ended_by or "–",
        "final accuracy": percent(result.final_accuracy),
        "best accuracy": percent(result.best_accuracy),
        "rounds": f"{result.rounds_completed:,}",
        "samples seen": f"{result.samples_seen:,}",
        "uplink": f"{result.uplink_bytes / _MB:,.3f} MB",
        "downlink": f"{result.downlink_bytes / _MB:,.3f} MB",
        "round trips": f"{result.num_exchanges:,}",
        "client step": f"{(result.client_step_flops or 0) / 1e6:,.2f} MFLOP",
        "client peak memory": f"{(result.client_peak_memory_bytes or 0) / _MB:,.3f} MB",
        "wall time": f"{result.wall_time_s:,.1f} s",
        "model checksum": result.final_model_checksum or "–",
    }
    rows |= {_MEASURES.get(name, name): f"{value:.4g}" for name, value in result.measures.items()}
    if result.local_accuracy is not None:
        rows["client and head alone"] = percent(result.local_accuracy)
    if result.measured_by:
        step, peak = result.measured.client_step_flops, result.measured.client_peak_memory_bytes
        rows["measured by"] = result.measured_by
        rows["client step, measured"] = f"{(step or 0) / 1e6:,.2f} MFLOP"
        rows["client peak memory, measured"] = f"{(peak or 0) / _MB:,.3f} MB"
    if result.simulated_s is not None:
        rows["simulated on"] = result.simulated_on
        rows["simulated time"] = in_words(result.simulated_s)
        rows["client-seconds"] = f"{result.client_s or 0:,.3g}"
        rows["clients left out"] = f"{len(result.excluded_clients):,}"
    if result.order_boundaries:
        rows["order boundaries"] = boundaries_text(result)
    rows |= privacy_rows(result.privacy)
    for event, times in result.events.items():
        rows[event.replace("_", " ")] = f"{times:,}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table
