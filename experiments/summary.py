"""Compare methods over several seeds: one row per method, at equal samples seen and against bytes.

Only completed runs enter a mean; failed and interrupted ones are counted and named, never dropped
in silence. Every comparison leans on two controls: first-order SFL and a client that stays frozen.
MB = 1e6 bytes; accuracies and gains are in percent.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from rich import box
from rich.table import Table

from leansplit.errors import UserError
from leansplit.server_app.results import Run, write_files

SFL_METHODS = ("sflv1", "sflv2")  # the first of them present is the reference of the gain
FROZEN_METHOD = "frozen"
MB = 1e6  # bytes
PERCENT = 0.01
MIN_CONTROL_GAP = 0.01  # below one point between SFL and frozen, the gain would be noise
DEFAULT_TARGET_SHARE = 0.9
SAMPLES_TOLERANCE = 0.01  # cohorts and batch ends make exact equality impossible
_ROUNDING = 1e-9  # accuracies are coarser than this; 0.82 - 0.81 < 0.01 in floating point
_NONE = "–"


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
    gain_recovered_mean_percent: float | None
    gain_recovered_std_percent: float | None
    num_gain_seeds: int
    samples_seen: float | None
    uplink_mb: float | None
    downlink_mb: float | None
    total_mb: float | None
    num_reached_target: int
    samples_to_target: float | None  # None unless every completed seed reached it
    mb_to_target: float | None
    num_exchanges: float | None
    client_forwards_per_sample: float | None
    client_backwards_per_sample: float | None
    client_step_gflops: float | None
    client_peak_memory_mb: float | None
    wall_time_s: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The comparison: rows in the given order, and what a reader must be warned of."""

    rows: tuple[MethodSummary, ...]
    warnings: tuple[str, ...]
    target_accuracy: float | None  # fraction
    sfl_label: str | None  # the first-order reference of the gain

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
        order: method names in the order of the rows; others follow as they come.
        target_accuracy: a fraction; by default 90 % of the best mean final accuracy among the
            first-order SFL methods. A run reaches it at its first evaluation at or above it:
            nothing is interpolated, so the answer is as fine as the evaluation interval.

    Raises:
        UserError: for no runs, several tasks, a seed given twice, or a target outside (0, 1].
    """
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise UserError(f"target accuracy must be a fraction in (0, 1], got {target_accuracy!r}")
    groups = group_runs(runs, order)
    completed = {k: [r for r in g if r.result.status == "completed"] for k, g in groups.items()}
    target = target_accuracy
    if target is None:
        sfl = [g for g in completed.values() if g and g[0].result.method in SFL_METHODS]
        means = [_mean(run.result.final_accuracy for run in group) for group in sfl]
        best = max((mean for mean in means if mean is not None), default=None)
        target = None if best is None else DEFAULT_TARGET_SHARE * best
    sfl_label, controls, control_warnings = _controls(completed)
    rows = [_summarise_method(g, completed[k], controls, target) for k, g in groups.items()]
    warnings = (*_status_warnings(runs, order), *_fairness_warnings(completed), *control_warnings)
    return Summary(rows=tuple(rows), warnings=warnings, target_accuracy=target, sfl_label=sfl_label)


def group_runs(runs: Sequence[Run], order: Sequence[str] = ()) -> dict[str, list[Run]]:
    """Return label -> runs sorted by seed; labels in the order of their methods.

    Raises:
        UserError: for no runs, several tasks, a seed given twice or a label for two methods.
    """
    if not runs:
        raise UserError("no runs to compare; give folders that hold a result.json")
    if len(tasks := sorted({run.result.task for run in runs})) > 1:
        raise UserError(f"runs of several tasks cannot be compared: {', '.join(tasks)}")
    rank = {method: position for position, method in enumerate(order)}
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: rank.get(run.result.method, len(rank))):
        groups.setdefault(run.result.label, []).append(run)
    for label, group in groups.items():
        group.sort(key=lambda run: run.result.root_seed)
        seeds = [run.result.root_seed for run in group]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"{label} has several runs of one seed ({seeds}); keep one of each")
        if len(methods := sorted({run.result.method for run in group})) > 1:
            raise UserError(f"the label {label!r} stands for several methods: {methods}")
    return groups


def write_summary(
    out_dir: Path,
    runs: Sequence[Run],
    *,
    order: Sequence[str] = (),
    target_accuracy: float | None = None,
    learning_rate_note: str | None = None,
) -> Summary:
    """Write `summary.csv` and `summary.md` and return what they say.

    Arguments and errors as `summarise`; ``out_dir`` is created if needed and must be writable;
    ``learning_rate_note`` says in one sentence how learning rates were chosen.
    """
    summary = summarise(runs, order=order, target_accuracy=target_accuracy)
    contents = {
        "summary.csv": summary.table.to_csv(index=False, lineterminator="\n").encode(),
        "summary.md": summary_markdown(summary, runs, learning_rate_note).encode(),
    }
    write_files(out_dir, contents)
    return summary


def summary_table(summary: Summary, title: str | None = None) -> Table:
    """Return the comparison for a terminal of 80 columns; warnings are not part of it."""
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.caption = _target_sentence(summary)
    for index, header in enumerate(_TERMINAL):
        # Only headers and remarks on seeds may wrap: a number split from its spread misleads.
        justify: Literal["left", "right"] = "right" if index else "left"
        table.add_column(header.replace(" ", "\n"), justify=justify, no_wrap=header != "Seeds")
    for row in summary.rows:
        table.add_row(*(_CELLS[header](row) for header in _TERMINAL))
    return table


def summary_markdown(summary: Summary, runs: Sequence[Run], rates: str | None = None) -> str:
    """Return `summary.md`: accuracy, cost, how to read them, where the numbers come from."""
    results = [run.result for run in runs]
    parts = [f"# Comparison on {results[0].task}", ""]
    parts += _markdown_table(summary, _ACCURACY)
    parts += ["", "## Cost", "", *_markdown_table(summary, _COST)]
    if summary.warnings:
        parts += ["", "## Warnings", "", *(f"- {warning}" for warning in summary.warnings)]
    parts += ["", "## How to read this", "", *(f"- {line}" for line in _HOW_TO_READ)]
    sfl = f"First-order SFL here is {summary.sfl_label}." if summary.sfl_label else ""
    note = f"Learning rates: {rates}" if rates else ""
    parts += [f"- {line}" for line in (sfl, _target_sentence(summary), note) if line]
    dates = sorted(result.started_at[:10] for result in results)
    facts = {
        "Versions": [", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in results],
        "Commit": [r.commit or "not a git checkout" for r in results],
        "Hardware": [", ".join(f"{k}: {v}" for k, v in r.hardware.items()) for r in results],
        "Command": [f"`{shlex.join(r.command)}`" if r.command else "" for r in results],
        "Seeds": [", ".join(map(str, sorted({r.root_seed for r in results})))],
        "Date": [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"],
    }
    parts += ["", "## Provenance", ""]
    for name, values in facts.items():
        parts += [f"- {name}: {value or 'not recorded'}" for value in dict.fromkeys(values)]
    return "\n".join(parts) + "\n"


_HOW_TO_READ = (
    "Methods are compared at equal samples seen, and against the bytes that crossed; never at "
    "equal rounds.",
    "Client gain recovered = (method − frozen) / (first-order SFL − frozen), per seed, then "
    "averaged. 0 %: what the server reaches while clients never learn; 100 %: what backpropagation "
    "on the clients adds. Where frozen matches SFL, matching SFL shows nothing.",
    "± is the sample standard deviation over seeds. Only completed runs enter means.",
    "Traffic is the encoded payload of all clients together; 1 MB = 1e6 bytes. Round trips are "
    "those on the critical path; forwards and backwards are client passes per training sample.",
)


def _plus_minus(mean: float | None, std: float | None) -> str:
    if mean is None:
        return _NONE
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def _quantity(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _seeds(row: MethodSummary) -> str:
    lost = [(row.num_failed, "failed"), (row.num_interrupted, "interrupted")]
    remarks = ", ".join(f"{count} {what}" for count, what in lost if count)
    return f"{row.num_completed}/{row.num_seeds}" + (f" ({remarks})" if remarks else "")


def _to_target(row: MethodSummary, value: float | None) -> str:
    if value is None and row.num_reached_target:
        return f"{row.num_reached_target}/{row.num_completed} seeds"
    return _quantity(value)


_CELLS: dict[str, Callable[[MethodSummary], str]] = {
    "Method": lambda r: r.label,
    "Seeds": _seeds,
    "Accuracy (%)": lambda r: _plus_minus(r.accuracy_mean_percent, r.accuracy_std_percent),
    "Best (%)": lambda r: _plus_minus(r.best_accuracy_mean_percent, r.best_accuracy_std_percent),
    "Client gain recovered (%)": lambda r: _plus_minus(
        r.gain_recovered_mean_percent, r.gain_recovered_std_percent
    ),
    "Samples seen": lambda r: _quantity(r.samples_seen),
    "Samples to target": lambda r: _to_target(r, r.samples_to_target),
    "MB to target": lambda r: _to_target(r, r.mb_to_target),
    "Uplink (MB)": lambda r: _quantity(r.uplink_mb),
    "Downlink (MB)": lambda r: _quantity(r.downlink_mb),
    "Total (MB)": lambda r: _quantity(r.total_mb),
    "Round trips": lambda r: _quantity(r.num_exchanges),
    "Forwards per sample": lambda r: _quantity(r.client_forwards_per_sample),
    "Backwards per sample": lambda r: _quantity(r.client_backwards_per_sample),
    "Client step (GFLOPs)": lambda r: _quantity(r.client_step_gflops),
    "Client peak memory (MB)": lambda r: _quantity(r.client_peak_memory_mb),
    "Wall time (s)": lambda r: _quantity(r.wall_time_s),
}
_HEADERS = tuple(_CELLS)
_ACCURACY = _HEADERS[:8]
_COST = ("Method", *_HEADERS[8:])
_TERMINAL = (*_HEADERS[:3], *_HEADERS[4:5], *_HEADERS[7:8], *_HEADERS[10:12])


def _markdown_table(summary: Summary, headers: Sequence[str]) -> list[str]:
    rows = [list(headers), ["---", *["---:"] * (len(headers) - 1)]]
    rows += [[_CELLS[h](row).replace("|", "\\|") for h in headers] for row in summary.rows]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _target_sentence(summary: Summary) -> str:
    if summary.target_accuracy is None:
        return "No target accuracy: none was given and no first-order SFL run completed."
    return (
        f"Target accuracy: {100 * summary.target_accuracy:.1f} %, counted at the first "
        "evaluation at or above it, where every completed seed reaches it."
    )


def _status_warnings(runs: Sequence[Run], order: Sequence[str]) -> list[str]:
    given = {run.result.method for run in runs}
    return [
        f"{r.label}, seed {r.root_seed}, {r.status} after round {r.rounds_completed} and is not "
        f"in the means{': ' + r.error.splitlines()[0] if r.error else '.'}"
        for r in (run.result for run in runs)
        if r.status != "completed"
    ] + [f"No run of {method!r} was given." for method in order if method not in given]


def _fairness_warnings(completed: dict[str, list[Run]]) -> list[str]:
    samples = {k: _mean(r.result.samples_seen for r in g) or 0 for k, g in completed.items() if g}
    if not samples or max(samples.values()) <= (1 + SAMPLES_TOLERANCE) * min(samples.values()):
        return []
    counts = ", ".join(f"{label} {_quantity(value)}" for label, value in samples.items())
    return [
        f"Methods saw different numbers of samples ({counts}): their final accuracies are not "
        "comparable; compare the curves at equal samples seen."
    ]


def _controls(
    completed: dict[str, list[Run]],
) -> tuple[str | None, dict[int, tuple[float, float]], list[str]]:
    """Return (label of first-order SFL, seed -> (SFL, frozen) accuracy, warnings)."""
    groups: dict[str, list[Run]] = {}
    for group in completed.values():
        if group:  # with several labels for one method the first given is the control
            groups.setdefault(group[0].result.method, group)
    sfl = next((groups[method] for method in SFL_METHODS if method in groups), [])
    frozen = groups.get(FROZEN_METHOD, [])
    label = sfl[0].result.label if sfl else None
    finals = [{r.result.root_seed: r.result.final_accuracy for r in g} for g in (sfl, frozen)]
    both = {
        seed: (high, low)
        for seed, high in finals[0].items()
        if high is not None and (low := finals[1].get(seed)) is not None
    }
    if not both:
        warning = (
            "No seed has completed runs of both first-order SFL and a frozen client: client gain "
            "recovered cannot be computed, and accuracies alone do not show that training the "
            "clients helped."
        )
        return label, {}, [warning]
    high, low = (statistics.fmean(pair[i] for pair in both.values()) for i in (0, 1))
    if high - low < MIN_CONTROL_GAP - _ROUNDING:
        warning = (
            f"{label} ends less than 1 point above a frozen client ({100 * high:.1f} % against "
            f"{100 * low:.1f} %): training the clients hardly matters here, so client gain "
            "recovered is not shown and matching SFL shows nothing."
        )
        return label, {}, [warning]
    kept = {s: pair for s, pair in both.items() if pair[0] - pair[1] >= MIN_CONTROL_GAP - _ROUNDING}
    warning = (
        f"Seeds {sorted(both.keys() - kept)} are left out of client gain recovered: there {label} "
        "ends less than 1 point above a frozen client."
    )
    return label, kept, [warning] if len(kept) < len(both) else []


def _mean_std(values: Iterable[float | None], unit: float = 1) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation of what is known, in units of ``unit``."""
    known = [value / unit for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    return mean, statistics.stdev(known) if len(known) > 1 else None


def _mean(values: Iterable[float | None], unit: float = 1) -> float | None:
    return _mean_std(values, unit)[0]


def _summarise_method(
    group: Sequence[Run],
    completed: Sequence[Run],
    controls: dict[int, tuple[float, float]],
    target_accuracy: float | None,
) -> MethodSummary:
    results = [run.result for run in completed]
    statuses = [run.result.status for run in group]
    accuracy = _mean_std((r.final_accuracy for r in results), PERCENT)
    best = _mean_std((r.best_accuracy for r in results), PERCENT)
    gains = []
    for r in results:
        if r.final_accuracy is not None and r.root_seed in controls:
            sfl, frozen = controls[r.root_seed]
            gains.append((r.final_accuracy - frozen) / (sfl - frozen))
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
        gain_recovered_mean_percent=gain[0],
        gain_recovered_std_percent=gain[1],
        num_gain_seeds=len(gains),
        samples_seen=_mean(r.samples_seen for r in results),
        uplink_mb=_mean((r.uplink_bytes for r in results), MB),
        downlink_mb=_mean((r.downlink_bytes for r in results), MB),
        total_mb=_mean((r.uplink_bytes + r.downlink_bytes for r in results), MB),
        num_reached_target=len(reached),
        samples_to_target=_mean(samples for samples, _ in all_reached),
        mb_to_target=_mean((total_bytes for _, total_bytes in all_reached), MB),
        num_exchanges=_mean(r.num_exchanges for r in results),
        client_forwards_per_sample=_mean(r.client_forwards / r.samples_seen for r in trained),
        client_backwards_per_sample=_mean(r.client_backwards / r.samples_seen for r in trained),
        client_step_gflops=_mean((r.client_step_flops for r in results), 1e9),
        client_peak_memory_mb=_mean((r.client_peak_memory_bytes for r in results), MB),
        wall_time_s=_mean(r.wall_time_s for r in results),
    )
