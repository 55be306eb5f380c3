"""What tuning leaves behind: `tuning.csv`, `tuning.md`, and the sentence for the experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from leansplit.experiments.summary_text import provenance
from leansplit.experiments.tune import TunedRow, TuningResult, describe, setting_text
from leansplit.server_app.budget import MB
from leansplit.server_app.results import write_files

_NONE = "–"
_RULE = (
    "Every method gets {settings} settings on seed {seed}, evaluated on a fifth of the training "
    "data that was held out. The best has the highest final accuracy, the lower loss among equals. "
    "Where it lacks a neighbour, one step down or up on one of its rates, the missing neighbours "
    "are tried; extensions for every method: at most {extensions}. Settings that fail have lost."
)
_FINALS = (
    " The {finalists} best of every method then ran again on seeds {seeds}, and the mean over all "
    "seeds decides."
)


def write_tuning(out_dir: Path, result: TuningResult, title: str) -> list[Path]:
    """Write `tuning.csv` and `tuning.md`; return their paths."""
    contents = {
        "tuning.csv": tuning_table(result).to_csv(index=False, lineterminator="\n").encode(),
        "tuning.md": tuning_markdown(result, title).encode(),
    }
    write_files(out_dir, contents)
    return [out_dir / name for name in contents]


def tuning_table(result: TuningResult) -> pd.DataFrame:
    """Return one row for each setting that was tried; units are in the column names."""
    rows = [
        {
            "label": tuned.row.label,
            "method": tuned.row.method,
            **trial.settings,
            "extension": trial.extension,
            "validation_accuracy_percent": 100 * trial.score[0] if trial.score else None,
            "validation_loss": -trial.score[1] if trial.score else None,
            "final_accuracy_percent": 100 * trial.final_score[0] if trial.final_score else None,
            "num_seeds": 1 + len(trial.reruns),
            "samples_seen": trial.result.samples_seen if trial.result else None,
            "total_mb": _megabytes(trial.result),
            "wall_time_s": trial.result.wall_time_s if trial.result else None,
            "is_best": trial is tuned.best,
            "error": trial.error,
        }
        for tuned in result.rows
        for trial in tuned.trials.values()
    ]
    table = pd.DataFrame(rows).round({"validation_accuracy_percent": 6, "total_mb": 6})
    keys = [name for name in table.columns if "." in name]
    others = [name for name in table.columns if name not in (*keys, "label", "method")]
    return table[["label", "method", *keys, *others]] if rows else table


def tuning_markdown(result: TuningResult, title: str) -> str:
    """Return `tuning.md`: the whole grid of every method, the best marked."""
    tuning = result.tuning
    rule = _RULE.format(
        settings=tuning.max_settings, seed=tuning.seed, extensions=tuning.max_extensions
    )
    if _has_finals(result):
        seeds = ", ".join(map(str, tuning.finalist_seeds))
        rule += _FINALS.format(finalists=tuning.finalists, seeds=seeds)
    parts = [f"# Tuning: {title}", "", rule]
    if result.warnings:
        parts += ["", "## Warnings", "", *(f"- {line}" for line in result.warnings)]
    for tuned in result.rows:
        parts += ["", f"## {tuned.row.label}", "", f"{describe(tuned.grid)}.", ""]
        if tuned.trials:
            parts += _grid_table(tuned)
    results = [t.result for tuned in result.rows for t in tuned.trials.values() if t.result]
    if results:
        parts += ["", "## Provenance", "", *provenance(results)]
    return "\n".join(parts) + "\n"


def tuning_summary(result: TuningResult, title: str) -> Table:
    """Return the best setting of each method, for a terminal."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Method", no_wrap=True)
    table.add_column("Best setting")
    table.add_column("Accuracy (%)", justify="right")
    table.add_column("Tried", justify="right")
    for tuned in result.rows:
        best = tuned.best
        score = (best.final_score or best.score) if best else None
        table.add_row(
            tuned.row.label,
            setting_text(best.settings) if best else _NONE,
            f"{100 * score[0]:.1f}" if score else _NONE,
            str(len(tuned.trials)),
        )
    table.caption = "Accuracy on held-out training data."
    return table


def learning_rate_note(
    result: TuningResult, date: str, *, before: str | None, overrides: dict[str, Any]
) -> str:
    """Return what an experiment file keeps on how its rates were chosen: sentences and a list.

    A line for each method that was tuned starts with a dash.

    Args:
        result: what was tuned.
        date: of the tuning.
        before: the sentence so far, kept for methods that were not tuned now.
        overrides: keys that the command line changed in the tuning runs.
    """
    tuned = [row for row in result.rows if row.best is not None]
    most = max(len(row.trials) for row in tuned)
    grids = "".join(f"\n- {row.row.label}: {describe(row.grid)}" for row in tuned)
    changes = {**result.tuning.run, **overrides}
    seeds = [result.tuning.seed]
    if _has_finals(result):
        seeds += result.tuning.finalist_seeds
    named = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    note = (
        f"the best of {result.tuning.max_settings} settings (up to {most} where the best lay at "
        f"the edge) on held-out training data and {named}, not compared, "
        f"on {date}{f', with {setting_text(changes)}' if changes else ''}:{grids}"
    )
    if before is None:
        return f"For every method {note}"
    return f"For {', '.join(row.row.label for row in tuned)} {note}\nFor the others: {before}"


def _has_finals(result: TuningResult) -> bool:
    return any(trial.reruns for tuned in result.rows for trial in tuned.trials.values())


def _grid_table(tuned: TunedRow) -> list[str]:
    trials = tuned.trials.values()
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    header = [*keys, "accuracy (%)", "loss", "mean of the finals (%)", "remark"]
    rows: list[Sequence[str]] = [header, [*["---:"] * (len(header) - 1), "---"]]
    for trial in trials:
        cells = [_cell(trial.settings.get(key)) for key in keys]
        if trial.score is None:
            cells += [_NONE, _NONE]
        else:
            cells += [f"{100 * trial.score[0]:.1f}", f"{-trial.score[1]:.3f}"]
        cells.append(f"{100 * trial.final_score[0]:.1f}" if trial.final_score else _NONE)
        if trial is tuned.best:
            cells = [f"**{cell}**" for cell in cells]
        remarks = [
            "best" if trial is tuned.best else "",
            f"extension {trial.extension}" if trial.extension else "",
            f"failed: {trial.error}" if trial.score is None else "",
        ]
        text = ", ".join(remark for remark in remarks if remark)
        rows.append([*cells, " ".join(text.split()).replace("|", "\\|")])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _megabytes(result: Any) -> float | None:
    return (result.uplink_bytes + result.downlink_bytes) / MB if result else None
