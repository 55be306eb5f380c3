"""Whether runs may be compared as they are: what a reader must be warned of."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence, Set

from leansplit.experiments.inert_moments import ADVICE, has_inert_moments
from leansplit.experiments.runner import Runner
from leansplit.server_app.budget import MB, EndedBy
from leansplit.server_app.results import Run, RunResult

SETTING = (
    *("clients", "cohort", "partition", "alpha", "classes_per_client", "min_samples"),
    *("task_options", "model", "model_options", "cut_layer", "initial_weights_digest"),
    *("fleet", "fleet_digest"),
)
"""Keys that say what is learnt by whom, not how: rows that differ in one have other controls."""
SAMPLES_TOLERANCE = 0.01
"""Cohorts and batch ends make exact equality impossible."""
BYTES_TOLERANCE = 0.05
"""A round costs some methods many bytes, and a run ends with a whole round."""
INTERVAL_TOLERANCE = 0.5
"""Methods with several local steps see several batches a round."""


def setting_of(result: RunResult) -> dict[str, str]:
    """Return the keys of ``SETTING`` that matter to a run, as text."""
    unused = {
        "alpha": result.config.get("partition") != "dirichlet",
        "classes_per_client": result.config.get("partition") != "pathological",
    }
    return {
        key: json.dumps(result.config.get(key), sort_keys=True, default=str)
        for key in SETTING
        if not unused.get(key)
    }


def ended_at_target(completed: Mapping[str, Sequence[Run]]) -> bool:
    """Say whether a run ended at its target accuracy, which makes final accuracies meaningless."""
    return any(run.result.ended_by == "accuracy" for group in completed.values() for run in group)


def fairness_warnings(completed: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return what is unequal between methods and should not be, under the budget that they had."""
    groups = {label: group for label, group in completed.items() if group}
    return [
        *_runner_warnings(groups),
        *_commit_warnings(groups),
        *_setting_warnings(groups),
        *_moment_warnings(groups),
        *_budget_warnings(groups),
        *_interval_warnings(groups),
        *_dropped_warnings(groups),
    ]


def device_warnings(completed: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return what simulated times do not hold: other devices, or clients too small to take part."""
    results = [(label, run.result) for label, group in completed.items() for run in group]
    told = {result.simulated_on for _, result in results if result.simulated_on}
    unfit = {
        label: len(there)
        for label, result in results
        if (there := {*(result.unfit_clients or ())} - {*result.excluded_clients})
    }
    found = []
    if len(told) > 1:
        found.append(
            f"Simulated times are those of different devices ({'; '.join(sorted(told))}) and must "
            "not be compared: tell them anew with `leansplit report --fleet`."
        )
    if unfit:
        who = ", ".join(f"{label} {count}" for label, count in unfit.items())
        found.append(
            f"Clients took part whose memory is too small for a step on these devices ({who}): "
            "run again with these devices as `fleet` to leave them out."
        )
    return found


def _commit_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    by_commit: dict[str, list[str]] = {}
    for label, group in groups.items():
        for commit in dict.fromkeys(run.result.commit or "" for run in group):
            by_commit.setdefault(commit[:12] or "not a git checkout", []).append(label)
    if len(by_commit) < 2:
        return []
    who = "; ".join(f"{commit}: {', '.join(labels)}" for commit, labels in by_commit.items())
    return [
        f"Runs were made by several versions of the code ({who}). If what changed between them "
        "touches results, make all of them anew: delete the older folders."
    ]


def _setting_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    settings = [setting_of(run.result) for group in groups.values() for run in group]
    names = dict.fromkeys(name for setting in settings for name in setting)
    differ = [name for name in names if len({setting.get(name) for setting in settings}) > 1]
    if not differ:
        return []
    return [
        f"Rows differ in {', '.join(differ)}: each is held against the controls of its own "
        "setting, and differences between settings are not differences between methods."
    ]


def _moment_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    inert = [k for k, group in groups.items() if has_inert_moments(group[0].result.config)]
    return [f"{', '.join(inert)}: {ADVICE}."] if inert else []


def _interval_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    intervals: dict[str, float] = {}
    for label, group in groups.items():
        steps = [float(s) for run in group for s in run.rounds["samples_seen"].diff().dropna()]
        if steps:
            intervals[label] = statistics.median(steps)
    return _unequal(
        intervals,
        "Methods were evaluated at different intervals, in samples ({}): samples and bytes to "
        "target are late by up to one of them. Choose evaluate_every for equal ones.",
        INTERVAL_TOLERANCE,
    )


def _dropped_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    dropped: dict[str, int] = {}
    for label, group in groups.items():
        results = [
            run.result for run in group if not {"faults", "attack"} & run.result.config.keys()
        ]
        if times := sum(result.events.get("dropped_clients", 0) for result in results):
            dropped[label] = times
    if not dropped:
        return []
    listed = ", ".join(f"{label} {times}" for label, times in dropped.items())
    return [
        f"Clients were dropped from rounds, and no run asked for faults ({listed} times): what "
        "they had done is not in the model. result.json says why, under events (docs/faults.md); "
        "answers that were not finite (dropped_non_finite) speak of too high a learning rate."
    ]


def _runner_warnings(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    made_by: dict[str, list[str]] = {}
    for label, group in groups.items():
        for runner in sorted({_made_by(run.result) for run in group}):
            made_by.setdefault(runner, []).append(label)
    if len(made_by) < 2:
        return []
    who = "; ".join(f"{runner}: {', '.join(labels)}" for runner, labels in made_by.items())
    return [
        f"Runs were not all made in the same way ({who}): traffic of plain loops leaves envelopes "
        "out, and another device computes other bits. Make all of them in one way."
    ]


def _made_by(result: RunResult) -> str:
    """Name who made a run, and where clients computed if that was not the CPU."""
    runner = str(Runner.of(result))
    is_elsewhere = result.engine != "plain" and result.device != "cpu"
    return f"{runner} with clients on {result.device}" if is_elsewhere else runner


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
