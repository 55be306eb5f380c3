"""The comparison for readers: `summary.csv`, `summary.md` and the table on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table

from leansplit.experiments.predicted_costs import HOW_TO_READ as COSTS_EXPLAINED
from leansplit.experiments.predicted_costs import cost_rows
from leansplit.experiments.privacy_text import privacy_section
from leansplit.experiments.significance import MIN_COMMON_SEEDS, PairedDifference
from leansplit.experiments.summary import MethodSummary, Summary, completed_runs, summarise
from leansplit.experiments.table_text import NONE, plus_minus, quantity_or_none, table_lines
from leansplit.server_app.results import Run, RunResult, write_files


def write_summary(
    out_dir: Path,
    runs: Sequence[Run],
    *,
    order: Sequence[str] = (),
    target_accuracy: float | None = None,
    learning_rate_note: str | None = None,
    title: str | None = None,
) -> Summary:
    """Write `summary.csv` and `summary.md` and return what they say.

    Arguments and errors as `summarise`; ``out_dir`` is created if needed and must be writable;
    ``learning_rate_note`` says in one sentence how learning rates were chosen; ``title`` heads
    `summary.md`.
    """
    summary = summarise(runs, order=order, target_accuracy=target_accuracy)
    contents = {
        "summary.csv": summary.table.to_csv(index=False, lineterminator="\n").encode(),
        "summary.md": summary_markdown(summary, runs, learning_rate_note, title).encode(),
    }
    write_files(out_dir, contents)
    return summary


def summary_table(summary: Summary, title: str | None = None) -> Table:
    """Return the comparison for a terminal of 80 columns; warnings are not part of it."""
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.caption = _target_sentence(summary)
    is_timed = any(row.simulated_s is not None for row in summary.rows)
    headers = _TERMINAL_TIMED if is_timed else _TERMINAL
    if summary.sfl_label and "p" in headers:
        table.caption += f" p: paired t-test against {summary.sfl_label}; summary.md has more."
    for index, header in enumerate(headers):
        # Only headers and remarks on seeds may wrap: a number split from its spread misleads.
        justify: Literal["left", "right"] = "right" if index else "left"
        table.add_column(header.replace(" ", "\n"), justify=justify, no_wrap=header != "Seeds")
    for row in summary.rows:
        table.add_row(*(_CELLS[header](row) for header in headers))
    return table


def summary_markdown(
    summary: Summary, runs: Sequence[Run], rates: str | None = None, title: str | None = None
) -> str:
    """Return `summary.md`: accuracy, cost, how to read them, where the numbers come from."""
    results = [run.result for run in runs]
    parts = [f"# {title or default_title(runs)}", ""]
    parts += _markdown_table(summary, _ACCURACY)
    parts += ["", "## Cost", "", *_markdown_table(summary, _COST)]
    parts += _predicted_and_measured(runs, [row.label for row in summary.rows])
    parts += _against_controls(summary)
    parts += privacy_section(results)
    if summary.warnings:
        parts += ["", "## Warnings", "", *(f"- {warning}" for warning in summary.warnings)]
    ends = {end for row in summary.rows for end in row.ended_by.split(", ") if end}
    compared_at = _AT_EQUAL_SAMPLES
    if "accuracy" in ends:
        compared_at = _AT_THE_TARGET
    elif ends == {"bytes"}:
        compared_at = _AT_EQUAL_BYTES
    parts += ["", "## How to read this", ""]
    explained = [text for header, text in _EXPLAINED.items() if _is_known(summary, header)]
    parts += [f"- {line}" for line in (compared_at, *_HOW_TO_READ, *explained)]
    sfl = _controls_sentence(summary)
    ended_by = f"Runs were ended by: {', '.join(sorted(ends))}." if ends else ""
    parts += [f"- {line}" for line in (sfl, ended_by, _target_sentence(summary)) if line]
    parts += learning_rate_items(rates)
    parts += ["", "## Provenance", "", *provenance(results)]
    return "\n".join(parts) + "\n"


def learning_rate_items(rates: str | None) -> list[str]:
    """Return list items on how rates were chosen; lines that start with a dash are one deeper."""
    lines = [line for line in (rates or "").splitlines() if line.strip()]
    return [
        f"  {line}" if line.startswith("- ") else f"- {'' if at else 'Learning rates: '}{line}"
        for at, line in enumerate(lines)
    ]


def default_title(runs: Sequence[Run]) -> str:
    """Return the title of a comparison that was given none."""
    return f"Comparison on {runs[0].result.task}"


def provenance(results: Sequence[RunResult]) -> list[str]:
    """Return list items that say where numbers come from: versions, hardware, commands, dates."""
    dates = sorted(result.started_at[:10] for result in results)
    facts = {
        "Versions": [", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in results],
        "Commit": [r.commit or "not a git checkout" for r in results],
        "Run by": [
            f"the methods' plain loops on {r.device}: nothing crossed, traffic is that of closed "
            "formulas without envelopes, and round trips are not counted"
            for r in results
            if r.engine == "plain"
        ],
        "Clients on": [r.device for r in results if r.engine != "plain" and r.device != "cpu"],
        "Hardware": [", ".join(f"{k}: {v}" for k, v in r.hardware.items()) for r in results],
        "Command": [f"`{shlex.join(r.command)}`" if r.command else "" for r in results],
        "Seeds": [", ".join(map(str, sorted({r.root_seed for r in results})))],
        "Date": [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"],
    }
    return [
        f"- {name}: {value or 'not recorded'}"
        for name, values in facts.items()
        for value in dict.fromkeys(values)
    ]


def _predicted_and_measured(runs: Sequence[Run], labels: Sequence[str]) -> list[str]:
    """Return the section on costs that were predicted and measured; empty if none were."""
    completed = completed_runs(runs)
    cells = cost_rows({label: completed[label] for label in labels if label in completed})
    if not cells:
        return []
    return ["", "## Predicted and measured", "", *table_lines(cells), "", COSTS_EXPLAINED]


def _against_controls(summary: Summary) -> list[str]:
    """Return the sections on significance: a table for each control, or why there is none."""
    sfl = [(row, row.sfl_label, _to_sfl(row)) for row in summary.rows]
    frozen = [(row, row.frozen_label, _to_frozen(row)) for row in summary.rows]
    parts = [*_against("first-order SFL", sfl), *_against("a frozen client", frozen)]
    tested = sum(difference.p_value is not None for _, _, difference in (*sfl, *frozen))
    if tested:
        parts += ["", "## How to read differences", ""]
        parts += [f"- {line}" for line in _HOW_TO_READ_SIGNIFICANCE]
    if tested > 1:
        parts.append(
            f"- {tested} differences are tested, and p is not corrected for that: to hold the "
            f"chance of one false finding below 5 %, call p below {0.05 / tested:.3g} significant."
        )
    return parts


def _against(
    control: str, rows: Sequence[tuple[MethodSummary, str | None, PairedDifference]]
) -> list[str]:
    """Return the table of differences to one kind of control."""
    compared = [row for row in rows if row[2].num_seeds is not None]
    if not compared:
        return []
    labels = {label for _, label, _ in compared}
    title = control if len(labels) > 1 else f"{labels.pop()}"
    parts = ["", f"## Against {title}", ""]
    if all((difference.num_seeds or 0) < MIN_COMMON_SEEDS for _, _, difference in compared):
        return [
            *parts,
            f"Nothing can be said of significance: no method has {MIN_COMMON_SEEDS} completed "
            "seeds in common with it. Add seeds: `--seeds 0,1,2,3,4`.",
        ]
    cells = [["Method", "Control", *_DIFFERENCE]]
    cells += [
        [row.label, label or NONE, *(cell(difference) for cell in _DIFFERENCE.values())]
        for row, label, difference in compared
    ]
    return [*parts, *table_lines(cells, num_text_columns=2)]


def _to_sfl(row: MethodSummary) -> PairedDifference:
    return PairedDifference(
        num_seeds=row.num_seeds_with_sfl,
        mean=row.difference_to_sfl_points,
        low=row.difference_to_sfl_low_points,
        high=row.difference_to_sfl_high_points,
        p_value=row.p_value,
        sign_flip_p_value=row.sign_flip_p_value,
    )


def _to_frozen(row: MethodSummary) -> PairedDifference:
    return PairedDifference(
        num_seeds=row.num_seeds_with_frozen,
        mean=row.difference_to_frozen_points,
        low=row.difference_to_frozen_low_points,
        high=row.difference_to_frozen_high_points,
        p_value=row.frozen_p_value,
        sign_flip_p_value=row.frozen_sign_flip_p_value,
    )


def _interval(difference: PairedDifference) -> str:
    low, high = difference.low, difference.high
    return NONE if low is None or high is None else f"{low:+.1f} to {high:+.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


_DIFFERENCE: dict[str, Callable[[PairedDifference], str]] = {
    "Common seeds": lambda d: str(d.num_seeds or 0),
    "Difference (points)": lambda d: NONE if d.mean is None else f"{d.mean:+.1f}",
    "95 % interval": _interval,
    "p": lambda d: _p(d.p_value),
    "p (sign flips)": lambda d: _p(d.sign_flip_p_value),
}


_AT_EQUAL_SAMPLES = (
    "Methods are compared at equal samples seen, and against the bytes that crossed; never at "
    "equal rounds."
)
_AT_EQUAL_BYTES = (
    "Methods are compared at equal bytes, both directions: a method that sends less sees more "
    "samples, and that is the point. Never compare at equal rounds."
)
_AT_THE_TARGET = (
    "Runs end where they reach the target: compare samples and bytes to target, round trips and "
    "passes, not final accuracies."
)
_HOW_TO_READ = (
    "Client gain recovered = (method − frozen) / (first-order SFL − frozen), per seed, then "
    "averaged. 0 %: what the server reaches while clients never learn; 100 %: what backpropagation "
    "on the clients adds. Where frozen matches SFL, matching SFL shows nothing.",
    "± is the sample standard deviation over seeds. Only completed runs enter means.",
    "Traffic is the encoded payload of all clients together; 1 MB = 1e6 bytes. Round trips are "
    "those on the critical path; forwards and backwards are client passes per training sample.",
)


_HOW_TO_READ_SIGNIFICANCE = (
    "Differences are of final accuracies, paired over the seeds that both have: a seed fixes "
    "initial weights, partition and cohorts. p is that of the paired t-test, two-sided; the "
    "interval is the one that belongs to it. Both take differences to be roughly normal.",
    "The exact sign-flip test takes nothing of the kind, but cannot go below 2 / 2^n: 0.25 for "
    "3 seeds, 0.0625 for 5. From 6 seeds on it can confirm the first.",
    "A large p does not say that methods are equal: read the interval for what is still possible.",
    "– : fewer than 3 common seeds, or the same difference on every seed: nothing can be said.",
)


def _seeds(row: MethodSummary) -> str:
    lost = [(row.num_failed, "failed"), (row.num_interrupted, "interrupted")]
    remarks = ", ".join(f"{count} {what}" for count, what in lost if count)
    return f"{row.num_completed}/{row.num_seeds}" + (f" ({remarks})" if remarks else "")


def _to_target(row: MethodSummary, value: float | None) -> str:
    if value is None and row.num_reached_target:
        return f"{row.num_reached_target}/{row.num_completed} seeds"
    return quantity_or_none(value)


_CELLS: dict[str, Callable[[MethodSummary], str]] = {
    "Method": lambda r: r.label,
    "Seeds": _seeds,
    "Accuracy (%)": lambda r: plus_minus(r.accuracy_mean_percent, r.accuracy_std_percent),
    "Best (%)": lambda r: plus_minus(r.best_accuracy_mean_percent, r.best_accuracy_std_percent),
    "Client and head alone (%)": lambda r: plus_minus(
        r.local_accuracy_mean_percent, r.local_accuracy_std_percent
    ),
    "Macro F1 (%)": lambda r: plus_minus(r.macro_f1_mean_percent, r.macro_f1_std_percent),
    "Perplexity": lambda r: plus_minus(r.perplexity_mean, r.perplexity_std, None),
    "BLEU": lambda r: plus_minus(r.bleu_mean, r.bleu_std),
    "ROUGE-L": lambda r: plus_minus(r.rouge_l_mean, r.rouge_l_std),
    "Client gain recovered (%)": lambda r: plus_minus(
        r.gain_recovered_mean_percent, r.gain_recovered_std_percent
    ),
    "Samples seen": lambda r: quantity_or_none(r.samples_seen),
    "Samples to target": lambda r: _to_target(r, r.samples_to_target),
    "MB to target": lambda r: _to_target(r, r.mb_to_target),
    "Simulated time to target (s)": lambda r: (
        NONE if r.simulated_s is None else _to_target(r, r.simulated_s_to_target)
    ),
    "Uplink (MB)": lambda r: quantity_or_none(r.uplink_mb),
    "Downlink (MB)": lambda r: quantity_or_none(r.downlink_mb),
    "Total (MB)": lambda r: quantity_or_none(r.total_mb),
    "Round trips": lambda r: quantity_or_none(r.num_exchanges),
    "Forwards per sample": lambda r: quantity_or_none(r.client_forwards_per_sample),
    "Backwards per sample": lambda r: quantity_or_none(r.client_backwards_per_sample),
    "Client step (GFLOPs)": lambda r: quantity_or_none(r.client_step_gflops),
    "Client peak memory (MB)": lambda r: quantity_or_none(r.client_peak_memory_mb),
    "Order boundaries": lambda r: r.order_boundaries or NONE,
    "Wall time (s)": lambda r: quantity_or_none(r.wall_time_s),
    "Simulated time (s)": lambda r: quantity_or_none(r.simulated_s),
    "Client-seconds": lambda r: quantity_or_none(r.client_s),
    "Clients too small": lambda r: quantity_or_none(r.unfit_clients),
    "p": lambda r: _p(r.p_value),
}
_HEADERS = tuple(_CELLS)
_FIRST_COST = _HEADERS.index("Uplink (MB)")
_ACCURACY = _HEADERS[:_FIRST_COST]
_COST = ("Method", *_HEADERS[_FIRST_COST : _HEADERS.index("p")])
_TERMINAL = (
    *("Method", "Seeds", "Accuracy (%)", "Client gain recovered (%)", "p"),
    *("MB to target", "Total (MB)", "Round trips"),
)
_TERMINAL_TIMED = (
    *("Method", "Seeds", "Accuracy (%)", "Total (MB)", "Round trips"),
    *("Simulated time to target (s)", "Simulated time (s)"),
)
_EXPLAINED = {
    "Client and head alone (%)": "Client and head alone: final test accuracy of the averaged "
    "client model with the averaged auxiliary head, without the server.",
    "Macro F1 (%)": "Macro F1: of the final model, the mean over classes.",
    "Perplexity": "Perplexity: of the final model, exp of the mean loss of a wanted token; "
    "accuracy is that of these tokens, each predicted from what should come before it.",
    "BLEU": "BLEU: of the texts that the final model writes, corpus level (sacrebleu), 0 to 100.",
    "ROUGE-L": "ROUGE-L: of the same texts, mean of the best reference's F measure, 0 to 100.",
    "Order boundaries": "Order boundaries: the last layer that is trained by zeroth-order steps, "
    "and how many clients have it there; none: backpropagation throughout, cut: the cut layer, "
    "all: zeroth order throughout.",
    "Simulated time to target (s)": "Simulated time to target: at the first evaluation at or above "
    "the target.",
    "Simulated time (s)": "Simulated time: what the run takes on the clients' devices and "
    "networks, counted FLOPs, bytes and round trips turned into seconds; the server computes in no "
    "time. A round takes as long as its slowest client.",
    "Client-seconds": "Client-seconds: the same, that clients are busy, all of them together.",
    "Clients too small": "Clients too small: their memory does not hold a step; a run with these "
    "devices leaves them out.",
}
"""Columns that few methods have, shown where any row has a number; what they mean."""


def _markdown_table(
    summary: Summary, headers: Sequence[str], only: Sequence[MethodSummary] | None = None
) -> list[str]:
    shown = summary.rows if only is None else only
    headers = [h for h in headers if h not in _EXPLAINED or _is_known(summary, h)]
    return table_lines([list(headers), *([_CELLS[h](row) for h in headers] for row in shown)])


def _is_known(summary: Summary, header: str) -> bool:
    return any(_CELLS[header](row) != NONE for row in summary.rows)


def _controls_sentence(summary: Summary) -> str:
    """Say which rows are the controls, of which rows if there are several pairs."""
    pairs: dict[tuple[str | None, str | None], list[str]] = {}
    for row in summary.rows:
        pairs.setdefault((row.sfl_label, row.frozen_label), []).append(row.label)
    said = [
        f"{sfl or 'none'} and {frozen or 'none'}"
        + (f" (for {', '.join(labels)})" if len(pairs) > 1 else "")
        for (sfl, frozen), labels in pairs.items()
    ]
    return f"Controls, first-order SFL and frozen client: {'; '.join(said)}."


def _target_sentence(summary: Summary) -> str:
    if summary.target_accuracy is None:
        return "No target accuracy: none was given and no first-order SFL run completed."
    return (
        f"Target accuracy: {100 * summary.target_accuracy:.1f} %, counted at the first "
        "evaluation at or above it, where every completed seed reaches it."
    )
