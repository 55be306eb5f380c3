"""Whether runs may be compared as they are: what a reader must be warned of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from leansplit.experiments.runner import Runner
from leansplit.server_app.budget import MB, EndedBy
from leansplit.server_app.results import Run

SAMPLES_TOLERANCE = 0.01
"""Cohorts and batch ends make exact equality impossible."""
BYTES_TOLERANCE = 0.05
"""A round costs some methods many bytes, and a run ends with a whole round."""


def ended_at_target(completed: Mapping[str, Sequence[Run]]) -> bool:
    """Say whether a run ended at its target accuracy, which makes final accuracies meaningless."""
    return any(run.result.ended_by == "accuracy" for group in completed.values() for run in group)


def fairness_warnings(completed: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return what is unequal between methods and should not be, under the budget that they had."""
    groups = {label: group for label, group in completed.items() if group}
    return [*_runner_warnings(groups), *_budget_warnings(groups)]


def _runner_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    made_by: dict[str, list[str]] = {}
    for label, group in groups.items():
        for runner in sorted({str(Runner.of(run.result)) for run in group}):
            made_by.setdefault(runner, []).append(label)
    if len(made_by) < 2:
        return []
    who = "; ".join(f"{runner}: {', '.join(labels)}" for runner, labels in made_by.items())
    return [
        f"Runs were not all made in the same way ({who}): traffic of plain loops leaves envelopes "
        "out, and another device computes other bits. Make all of them in one way."
    ]


def _budget_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    ends = {label: {run.result.ended_by for run in group} for label, group in groups.items()}
    kinds = set().union(*ends.values())
    if "accuracy" in kinds:
        return [
            "Runs end at their target accuracy, so final accuracies, gain and significance are "
            "not compared: compare samples and bytes to target."
        ]
    if kinds == {"bytes"}:
        return _unequal(
            {k: _mean([_traffic(run) / MB for run in group]) for k, group in groups.items()},
            "Methods sent different amounts in spite of a budget of bytes ({} MB): a run ends with "
            "the first round that reaches it, and some rounds are large. Compare the curves at "
            "equal bytes.",
            BYTES_TOLERANCE,
        )
    if "bytes" in kinds:
        by = "; ".join(f"{label} by {_names(found)}" for label, found in ends.items())
        return [
            f"Runs were ended by different budgets ({by}): their final accuracies are not "
            "comparable; compare the curves, or give all methods the same budget and rounds enough."
        ]
    return _unequal(
        {k: _mean([run.result.samples_seen for run in group]) for k, group in groups.items()},
        "Methods saw different numbers of samples ({}): their final accuracies are not comparable; "
        "compare the curves at equal samples seen.",
        SAMPLES_TOLERANCE,
    )


def _unequal(values: Mapping[str, float], warning: str, tolerance: float) -> list[str]:
    if not values or max(values.values()) <= (1 + tolerance) * min(values.values()):
        return []
    return [warning.format(", ".join(f"{k} {quantity(v)}" for k, v in values.items()))]


def quantity(value: float) -> str:
    """Return a number as tables show it: four digits, or whole thousands."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _traffic(run: Run) -> int:
    return run.result.uplink_bytes + run.result.downlink_bytes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _names(ended_by: Set[EndedBy | None]) -> str:
    return " and ".join(sorted(name or "an unknown budget" for name in ended_by))
