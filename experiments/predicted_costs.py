"""Costs as predicted beside costs as measured, for `summary.md`, and where they do not agree."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from leansplit.experiments.fairness import quantity
from leansplit.server_app.budget import MB
from leansplit.server_app.cost_figures import CostFigures
from leansplit.server_app.results import Run, RunResult

TOLERANCE = 0.05

_FIGURES: dict[str, tuple[float, Callable[[CostFigures], int | None]]] = {
    "step (GFLOPs)": (1e9, lambda f: f.client_step_flops),
    "peak memory (MB)": (MB, lambda f: f.client_peak_memory_bytes),
    "uplink (MB)": (MB, lambda f: f.uplink_bytes),
    "downlink (MB)": (MB, lambda f: f.downlink_bytes),
}

HOW_TO_READ = (
    "Predicted is what `leansplit plan` says; measured is what one client counted of its own step, "
    "and the ledger without envelopes. See docs/accounting.md."
)


def cost_rows(completed: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Return a header and a row for each label: every figure predicted and measured, as means.

    Empty if nothing was measured. A figure that a run has on one side only is left out.
    """
    rows = []
    for label, runs in completed.items():
        cells = [_means(runs, *figure) for figure in _FIGURES.values()]
        if any(cells):
            shown = [[quantity(value) for value in cell] or ["–", "–"] for cell in cells]
            rows.append([label, *(text for pair in shown for text in pair)])
    if not rows:
        return []
    header = [f"{side} {name}" for name in _FIGURES for side in ("Predicted", "Measured")]
    return [["Method", *header], *rows]


def cost_warnings(completed: Mapping[str, Sequence[RunResult]]) -> list[str]:
    """Return a warning for each label and figure that differs by more than 5 % in any run."""
    warnings = []
    for label, results in completed.items():
        for name, (_, figure) in _FIGURES.items():
            pairs = [pair for result in results if (pair := _pair(result, figure))]
            worst = max((m / p - 1 if p else float(m > 0) for p, m in pairs), key=abs, default=0.0)
            if abs(worst) > TOLERANCE:
                warnings.append(
                    f"{label}: the measured {name.partition(' (')[0]} differs from the predicted "
                    f"by {worst:+.1%}; see docs/accounting.md for what can differ."
                )
    return warnings


def _pair(result: RunResult, figure: Callable[[CostFigures], int | None]) -> tuple[int, int] | None:
    predicted, measured = figure(result.predicted), figure(result.measured)
    return None if predicted is None or measured is None else (predicted, measured)


def _means(
    runs: Sequence[Run], unit: float, figure: Callable[[CostFigures], int | None]
) -> tuple[float, ...]:
    """Return the means of what was predicted and what was measured; nothing if no run has both."""
    pairs = [pair for run in runs if (pair := _pair(run.result, figure))]
    return tuple(statistics.fmean(side) / unit for side in zip(*pairs, strict=True))
