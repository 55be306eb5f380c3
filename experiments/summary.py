"""Compare methods over several seeds: one row per method, at equal samples seen and against bytes.

Only completed runs enter a mean; failed and interrupted ones are counted and named, never dropped
in silence. Every comparison leans on two controls: first-order SFL and a client that stays frozen.
MB = 1e6 bytes; accuracies and gains are in percent, differences of accuracies in points.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from leansplit.errors import UserError
from leansplit.experiments.controls import SFL_METHODS, Controls, find_controls
from leansplit.experiments.fairness import (
    device_warnings,
    ended_at_target,
    fairness_warnings,
)
from leansplit.experiments.predicted_costs import cost_warnings
from leansplit.experiments.significance import PairedDifference, paired_difference
from leansplit.server_app.budget import MB
from leansplit.server_app.results import Run, RunResult

PERCENT = 0.01
DEFAULT_TARGET_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """One row of the comparison; None where there is nothing honest to say."""

    method: str
    label: str
    num_seeds: int
    num_completed: int
    num_interrupted: int
    num_failed: int
    accuracy_mean_percent: float | None
    accuracy_std_percent: float | None  # sample standard deviation over seeds
    best_accuracy_mean_percent: float | None
    best_accuracy_std_percent: float | None
    local_accuracy_mean_percent: float | None  # client model and auxiliary head, no server
    local_accuracy_std_percent: float | None
    macro_f1_mean_percent: float | None  # this and the next three: where the task has it
    macro_f1_std_percent: float | None
    perplexity_mean: float | None
    perplexity_std: float | None
    bleu_mean: float | None  # 0 to 100
    bleu_std: float | None
    rouge_l_mean: float | None  # 0 to 100
    rouge_l_std: float | None
    gain_recovered_mean_percent: float | None
    gain_recovered_std_percent: float | None
    num_gain_seeds: int
    sfl_label: str | None  # the row's controls: first-order SFL, and a frozen client
    frozen_label: str | None
    num_seeds_with_sfl: int | None  # completed seeds that first-order SFL has too; None: it is SFL
    difference_to_sfl_points: float | None  # mean over these seeds; see significance.py
    difference_to_sfl_low_points: float | None  # 95 % interval
    difference_to_sfl_high_points: float | None
    p_value: float | None  # paired t-test, two-sided
    sign_flip_p_value: float | None  # exact, two-sided
    num_seeds_with_frozen: int | None  # the same against the frozen client; None: it is that
    difference_to_frozen_points: float | None
    difference_to_frozen_low_points: float | None
    difference_to_frozen_high_points: float | None
    frozen_p_value: float | None
    frozen_sign_flip_p_value: float | None
    ended_by: str  # the budget, or budgets, that ended its completed runs
    samples_seen: float | None
    uplink_mb: float | None
    downlink_mb: float | None
    total_mb: float | None
    num_reached_target: int
    samples_to_target: float | None  # None unless every completed seed reached it
    mb_to_target: float | None
    num_exchanges: float | None  # of federations; plain loops exchange nothing
    client_forwards_per_sample: float | None
    client_backwards_per_sample: float | None
    client_step_gflops: float | None
    client_peak_memory_mb: float | None
    order_boundaries: str  # clients at each, as "none × 50, cut × 50"; empty: they do not differ
    wall_time_s: float | None
    simulated_s: float | None  # on the clients' devices, where a fleet says what these are
    simulated_s_to_target: float | None  # as samples_to_target
    client_s: float | None  # simulated time that clients are busy, all together
    unfit_clients: float | None  # their memory is too small for a step


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The comparison: rows in the given order, and what a reader must be warned of."""

    rows: tuple[MethodSummary, ...]
    warnings: tuple[str, ...]
    target_accuracy: float | None  # fraction
    sfl_label: str | None  # the first-order reference of most rows

    @property
    def table(self) -> pd.DataFrame:
        """The rows as `summary.csv` holds them; units are in the column names."""
        return pd.DataFrame([asdict(row) for row in self.rows]).round(6)


def summarise(
    runs: Sequence[Run], *, order: Sequence[str] = (), target_accuracy: float | None = None
) -> Summary:
    """Summarise runs of several methods and seeds; runs with the same label share a row.

    Args:
        runs: runs of one task.
        order: labels or method names in the order of the rows; others follow as they come.
        target_accuracy: a fraction; by default the target that the runs were to end at, or else
            90 % of the best mean final accuracy among the first-order SFL methods. A run reaches
            it at its first evaluation at or above it: nothing is interpolated, so the answer is as
            fine as the evaluation interval.

    Raises:
        UserError: for no runs, several tasks, a seed given twice, or a target outside (0, 1].
    """
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise UserError(f"target accuracy must be a fraction in (0, 1], got {target_accuracy!r}")
    groups = group_runs(runs, order)
    completed = {k: [r for r in g if r.result.status == "completed"] for k, g in groups.items()}
    target = target_accuracy or _common_target(runs) or _default_target(completed)
    controls = find_controls(completed)
    warnings = [*_status_warnings(runs, order), *fairness_warnings(completed)]
    results_of = {label: [run.result for run in runs] for label, runs in completed.items()}
    warnings += [*device_warnings(completed), *cost_warnings(results_of)]
    warnings += _easy_target_warnings(completed, target)
    finals = {label: _final_accuracies(group) for label, group in completed.items()}
    if ended_at_target(completed):  # where a run ended there, its accuracy is the target's
        controls = controls.without_accuracies()
        finals = {}

    def against(label: str, control: str | None) -> PairedDifference:
        if control in (None, label):
            return PairedDifference(num_seeds=None)
        return paired_difference(finals.get(label, {}), finals.get(control or "", {}))

    rows = tuple(
        _summarise_method(
            group,
            completed[label],
            controls,
            against(label, controls.of(label).sfl),
            against(label, controls.of(label).frozen),
            target,
        )
        for label, group in groups.items()
    )
    return Summary(
        rows=rows,
        warnings=(*warnings, *controls.warnings),
        target_accuracy=target,
        sfl_label=controls.sfl_label,
    )


def completed_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return label -> its completed runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.result.status == "completed":
            groups.setdefault(run.result.label, []).append(run)
    return groups


def rank_of(result: RunResult, order: Sequence[str]) -> int:
    """Return where a run's row stands in ``order``, by its label or else its method."""
    names = [*order]
    found = [names.index(name) for name in (result.label, result.method) if name in names]
    return found[0] if found else len(names)


def is_listed(result: RunResult, order: Sequence[str]) -> bool:
    """Say whether ``order`` names a run's row, by its label or its method."""
    return rank_of(result, order) < len(order)


def group_runs(runs: Sequence[Run], order: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Return label -> runs sorted by seed; rows in the order of their labels or methods.

    Raises:
        UserError: for no runs, several tasks, a seed given twice or a label for two methods.
    """
    if not runs:
        raise UserError("no runs to compare; give folders that hold a result.json")
    if len(tasks := sorted({run.result.task for run in runs})) > 1:
        raise UserError(f"runs of several tasks cannot be compared: {', '.join(tasks)}")
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: rank_of(run.result, order)):
        groups.setdefault(run.result.label, []).append(run)
    for label, group in groups.items():
        group.sort(key=lambda run: run.result.root_seed)
        seeds = [run.result.root_seed for run in group]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"{label} has several runs of one seed ({seeds}); keep one of each")
        if len(methods := sorted({run.result.method for run in group})) > 1:
            raise UserError(f"the label {label!r} stands for several methods: {methods}")
    return groups


def _common_target(runs: Sequence[Run]) -> float | None:
    targets = {run.result.config.get("target_accuracy") or None for run in runs}
    return targets.pop() if len(targets) == 1 else None


def _default_target(completed: Mapping[str, Sequence[Run]]) -> float | None:
    sfl = [g for g in completed.values() if g and g[0].result.method in SFL_METHODS]
    means = [_mean(run.result.final_accuracy for run in group) for group in sfl]
    best = max((mean for mean in means if mean is not None), default=None)
    return None if best is None else DEFAULT_TARGET_SHARE * best


def _easy_target_warnings(
    completed: Mapping[str, Sequence[Run]], target: float | None
) -> list[str]:
    """Name the rows whose runs were all at the target when they were first looked at."""

    def is_easy_for(run: Run) -> bool:
        seen = sorted(n for n in run.rounds["samples_seen"].unique() if n > 0)  # 0: untrained
        crossing = run.first_crossing(target or math.inf)
        return len(seen) > 1 and crossing is not None and crossing[0] <= seen[0]

    easy = [label for label, group in completed.items() if group and all(map(is_easy_for, group))]
    if not easy:
        return []
    return [
        f"The target of {target:.1%} is reached at the first evaluation by {', '.join(easy)}: "
        "their samples and MB to target only say when that was. Set target_accuracy higher, or "
        "evaluate_every lower."
    ]


def _final_accuracies(group: Sequence[Run]) -> dict[int, float]:
    """Return seed -> final accuracy in percent."""
    results = [run.result for run in group]
    return {
        r.root_seed: r.final_accuracy / PERCENT for r in results if r.final_accuracy is not None
    }


def _status_warnings(runs: Sequence[Run], order: Sequence[str]) -> list[str]:
    given = {name for run in runs for name in (run.result.label, run.result.method)}
    return [
        f"{r.label}, seed {r.root_seed}, {r.status} after round {r.rounds_completed} and is not "
        f"in the means{': ' + r.error.splitlines()[0] if r.error else '.'}"
        for r in (run.result for run in runs)
        if r.status != "completed"
    ] + [f"There is no run of {name!r}." for name in order if name not in given]


def _mean_std(values: Iterable[float | None], unit: float = 1) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation of what is known, in units of ``unit``."""
    known = [value / unit for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    return mean, statistics.stdev(known) if len(known) > 1 else None


def _mean(values: Iterable[float | None], unit: float = 1) -> float | None:
    return _mean_std(values, unit)[0]


def boundaries_text(result: RunResult) -> str:
    """Return how many clients of a run have which order boundary; empty if it has none."""
    return ", ".join(f"{b.boundary} × {len(b.clients)}" for b in result.order_boundaries)


def _simulated_seconds_at(run: Run, samples: int) -> float | None:
    """Return the simulated time of the first evaluation at that many samples, if it is told."""
    if "simulated_s" not in run.rounds:
        return None
    return float(run.rounds["simulated_s"][run.rounds["samples_seen"] == samples].min())


def _summarise_method(
    group: Sequence[Run],
    completed: Sequence[Run],
    controls: Controls,
    to_sfl: PairedDifference,
    to_frozen: PairedDifference,
    target_accuracy: float | None,
) -> MethodSummary:
    results = [run.result for run in completed]
    statuses = [run.result.status for run in group]
    accuracy = _mean_std((r.final_accuracy for r in results), PERCENT)
    best = _mean_std((r.best_accuracy for r in results), PERCENT)
    local = _mean_std((r.local_accuracy for r in results), PERCENT)
    f1, perplexity, bleu, rouge_l = (
        _mean_std((r.measures.get(name) for r in results), unit)
        for name, unit in (("f1", PERCENT), ("perplexity", 1), ("bleu", 1), ("rouge_l", 1))
    )
    gains = [gain for gain in map(controls.gain_recovered, results) if gain is not None]
    gain = _mean_std(gains, PERCENT)
    # No accuracy is above infinity: without a target nothing is reached.
    target = math.inf if target_accuracy is None else target_accuracy
    reached = [crossing for run in completed if (crossing := run.first_crossing(target))]
    # A mean over the lucky seeds only would flatter the method: all of them, or no number.
    all_reached = reached if len(reached) == len(completed) else []
    trained = [r for r in results if r.samples_seen]
    return MethodSummary(
        method=group[0].result.method,
        label=group[0].result.label,
        num_seeds=len(group),
        num_completed=len(completed),
        num_interrupted=statuses.count("interrupted"),
        num_failed=statuses.count("failed"),
        accuracy_mean_percent=accuracy[0],
        accuracy_std_percent=accuracy[1],
        best_accuracy_mean_percent=best[0],
        best_accuracy_std_percent=best[1],
        local_accuracy_mean_percent=local[0],
        local_accuracy_std_percent=local[1],
        macro_f1_mean_percent=f1[0],
        macro_f1_std_percent=f1[1],
        perplexity_mean=perplexity[0],
        perplexity_std=perplexity[1],
        bleu_mean=bleu[0],
        bleu_std=bleu[1],
        rouge_l_mean=rouge_l[0],
        rouge_l_std=rouge_l[1],
        gain_recovered_mean_percent=gain[0],
        gain_recovered_std_percent=gain[1],
        num_gain_seeds=len(gains),
        sfl_label=controls.of(group[0].result.label).sfl,
        frozen_label=controls.of(group[0].result.label).frozen,
        num_seeds_with_sfl=to_sfl.num_seeds,
        difference_to_sfl_points=to_sfl.mean,
        difference_to_sfl_low_points=to_sfl.low,
        difference_to_sfl_high_points=to_sfl.high,
        p_value=to_sfl.p_value,
        sign_flip_p_value=to_sfl.sign_flip_p_value,
        num_seeds_with_frozen=to_frozen.num_seeds,
        difference_to_frozen_points=to_frozen.mean,
        difference_to_frozen_low_points=to_frozen.low,
        difference_to_frozen_high_points=to_frozen.high,
        frozen_p_value=to_frozen.p_value,
        frozen_sign_flip_p_value=to_frozen.sign_flip_p_value,
        ended_by=", ".join(sorted({r.ended_by or "unknown" for r in results})),
        samples_seen=_mean(r.samples_seen for r in results),
        uplink_mb=_mean((r.uplink_bytes for r in results), MB),
        downlink_mb=_mean((r.downlink_bytes for r in results), MB),
        total_mb=_mean((r.uplink_bytes + r.downlink_bytes for r in results), MB),
        num_reached_target=len(reached),
        samples_to_target=_mean(samples for samples, _ in all_reached),
        mb_to_target=_mean((total_bytes for _, total_bytes in all_reached), MB),
        num_exchanges=_mean(r.num_exchanges for r in results if r.engine == "flower"),
        client_forwards_per_sample=_mean(r.client_forwards / r.samples_seen for r in trained),
        client_backwards_per_sample=_mean(r.client_backwards / r.samples_seen for r in trained),
        client_step_gflops=_mean((r.client_step_flops for r in results), 1e9),
        client_peak_memory_mb=_mean((r.client_peak_memory_bytes for r in results), MB),
        order_boundaries="; ".join(dict.fromkeys(filter(None, map(boundaries_text, results)))),
        wall_time_s=_mean(r.wall_time_s for r in results),
        simulated_s=_mean(r.simulated_s for r in results),
        simulated_s_to_target=_mean(
            _simulated_seconds_at(run, samples)
            for run, (samples, _) in zip(completed, all_reached, strict=bool(all_reached))
        ),
        client_s=_mean(r.client_s for r in results),
        unfit_clients=_mean(
            None if r.unfit_clients is None else len(r.unfit_clients) for r in results
        ),
    )
