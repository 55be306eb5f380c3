"""The comparison table: hand-computed numbers, controls, and seeds that are never dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from leansplit.errors import UserError
from leansplit.experiments.runner import FLOWER, Runner
from leansplit.experiments.summary import MethodSummary, Summary, summarise
from leansplit.experiments.summary_text import summary_markdown, summary_table, write_summary
from leansplit.experiments.table_text import plus_minus
from leansplit.server_app.cost_figures import CostFigures
from leansplit.server_app.results import (
    Run,
    RunResult,
    config_hash,
    ledger_table,
    rounds_table,
)

LABELS = {"sflv1": "SFLV1", "sflv2": "SFLV2", "ho-sfl": "HO-SFL", "frozen": "Frozen client"}


def make_run(
    method: str,
    seed: int,
    accuracies: Sequence[float],
    *,
    samples_per_evaluation: int = 100,
    uplink_bytes: int = 3_000_000,
    downlink_bytes: int = 1_000_000,
    **changes: Any,
) -> Run:
    """A run evaluated every ``samples_per_evaluation``; bytes are per evaluation interval."""
    count = len(accuracies)
    rounds = rounds_table(
        {
            "round": i,
            "samples_seen": i * samples_per_evaluation,
            "accuracy": accuracy,
            "loss": 1.0,
            "train_loss": 1.0,
            "uplink_bytes": i * uplink_bytes,
            "downlink_bytes": i * downlink_bytes,
            "num_exchanges": 2 * i,
            "wall_time_s": 0.5 * i,
        }
        for i, accuracy in enumerate(accuracies, start=1)
    )
    config = {"method": method, "root_seed": seed}
    values: dict[str, Any] = {
        "method": method,
        "label": LABELS.get(method, method),
        "task": "digits",
        "status": "completed",
        "config": config,
        "config_hash": config_hash(config),
        "root_seed": seed,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "commit": "c" * 40,
        "hardware": {"cpu_model": "Some CPU", "cores": 2},
        "command": ["leansplit", "compare", "--note", "two words"],
        "started_at": f"2026-01-0{seed + 1}T00:00:00+00:00",
        "wall_time_s": 0.5 * count,
        "rounds_completed": count,
        "samples_seen": count * samples_per_evaluation,
        "final_accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": max(accuracies, default=None),
        "num_exchanges": 2 * count,
        "uplink_bytes": count * uplink_bytes,
        "downlink_bytes": count * downlink_bytes,
        "client_forwards": 3 * count * samples_per_evaluation,
        "client_backwards": 0,
        "client_step_flops": 2_500_000_000,
        "client_peak_memory_bytes": 5_000_000,
    }
    result = RunResult(**{**values, **changes})
    return Run(result=result, rounds=rounds, ledger=ledger_table([]))


def comparison() -> list[Run]:
    return [
        make_run("ho-sfl", 0, [0.50, 0.83, 0.88, 0.86]),
        make_run("ho-sfl", 1, [0.60, 0.70, 0.83, 0.89]),
        make_run("sflv1", 0, [0.60, 0.80, 0.85, 0.90]),
        make_run("sflv1", 1, [0.60, 0.80, 0.85, 0.94]),
        make_run("frozen", 0, [0.50, 0.60, 0.65, 0.70], uplink_bytes=2_000_000, downlink_bytes=0),
        make_run("frozen", 1, [0.50, 0.60, 0.65, 0.74], uplink_bytes=2_000_000, downlink_bytes=0),
    ]


def row_of(summary: Summary, method: str) -> MethodSummary:
    (row,) = [row for row in summary.rows if row.method == method]
    return row


def test_hand_computed_numbers() -> None:
    summary = summarise(comparison())
    assert summary.warnings == ()
    assert summary.sfl_label == "SFLV1"
    assert summary.target_accuracy == pytest.approx(0.9 * 0.92)  # mean of 0.90 and 0.94
    row = row_of(summary, "ho-sfl")
    assert row.label == "HO-SFL"
    assert (row.num_seeds, row.num_completed, row.num_failed, row.num_interrupted) == (2, 2, 0, 0)
    assert row.accuracy_mean_percent == pytest.approx(87.5)
    assert row.accuracy_std_percent == pytest.approx(3 / 2**0.5)  # sample std of 86 and 89
    assert row.best_accuracy_mean_percent == pytest.approx(88.5)
    assert row.best_accuracy_std_percent == pytest.approx(1 / 2**0.5)
    # seed 0: (0.86 - 0.70) / (0.90 - 0.70) = 0.80; seed 1: (0.89 - 0.74) / (0.94 - 0.74) = 0.75
    assert row.gain_recovered_mean_percent == pytest.approx(77.5)
    assert row.gain_recovered_std_percent == pytest.approx(5 / 2**0.5)
    assert row.num_gain_seeds == 2
    assert row.samples_seen == 400
    assert (row.uplink_mb, row.downlink_mb, row.total_mb) == (12, 4, 16)
    # target 0.828: seed 0 reaches it at evaluation 2, seed 1 at 3; 4 MB per evaluation
    assert row.num_reached_target == 2
    assert row.samples_to_target == 250
    assert row.mb_to_target == 10
    assert row.num_exchanges == 8
    assert row.client_forwards_per_sample == 3
    assert row.client_backwards_per_sample == 0
    assert row.client_step_gflops == 2.5
    assert row.client_peak_memory_mb == 5
    assert row.wall_time_s == 2


def test_the_controls_score_nought_and_a_hundred() -> None:
    summary = summarise(comparison())
    assert row_of(summary, "frozen").gain_recovered_mean_percent == pytest.approx(0)
    assert row_of(summary, "sflv1").gain_recovered_mean_percent == pytest.approx(100)
    assert row_of(summary, "frozen").num_reached_target == 0
    assert row_of(summary, "frozen").samples_to_target is None


def test_rows_follow_the_given_order_then_the_order_of_the_runs() -> None:
    runs = comparison()
    assert [row.method for row in summarise(runs).rows] == ["ho-sfl", "sflv1", "frozen"]
    ordered = summarise(runs, order=["frozen", "sflv1"])
    assert [row.method for row in ordered.rows] == ["frozen", "sflv1", "ho-sfl"]
    missing = summarise(runs, order=["sflv1", "fsl-sage"])
    assert missing.warnings == ("There is no run of 'fsl-sage'.",)


def test_one_seed_has_no_spread() -> None:
    row = row_of(summarise([run for run in comparison() if run.result.root_seed == 0]), "ho-sfl")
    assert row.accuracy_mean_percent == pytest.approx(86)
    assert row.accuracy_std_percent is None
    assert row.gain_recovered_mean_percent == pytest.approx(80)
    assert row.gain_recovered_std_percent is None


# --- target -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "std", "decimals", "text"),
    [
        (87.46, 2.06, 1, "87.5 ± 2.1"),
        (87.46, None, 1, "87.5"),
        (None, None, 1, "–"),
        (0.0304, 0.00049, 3, "0.030 ± 0.000"),
        (12345.6, 0.4, None, "12,346 ± 0"),
        (3000, 123.4, None, "3,000 ± 123"),
        (1000.2, 1234.5, None, "1,000 ± 1,234"),  # halves go to the even neighbour
        (12.3456, 0.5, None, "12.35 ± 0.50"),
        (16, 0.4, None, "16.00 ± 0.40"),  # not "16 ± 0"
        (16, 0, None, "16 ± 0"),
        (16, None, None, "16"),
        (0.00123456, 0.0000049, None, "0.001235 ± 0.000005"),
        (0, 0, None, "0 ± 0"),
    ],
)
def test_a_spread_is_rounded_to_the_place_of_its_mean(
    mean: float | None, std: float | None, decimals: int | None, text: str
) -> None:
    assert plus_minus(mean, std, decimals) == text


def test_the_target_is_reached_at_the_first_evaluation_at_or_above_it() -> None:
    run = make_run("ho-sfl", 0, [0.2, 0.72, 0.5, 0.9])
    # Not interpolated; equality counts, also where 0.9 * 0.8 exceeds 0.72 by rounding.
    assert 0.9 * 0.8 > 0.72
    assert run.first_crossing(0.9 * 0.8) == (200, 8_000_000)
    assert run.first_crossing(0.7201) == (400, 16_000_000)
    assert run.first_crossing(0.91) is None
    assert make_run("ho-sfl", 0, []).first_crossing(0.1) is None


def test_a_mean_over_the_lucky_seeds_only_is_not_given() -> None:
    summary = summarise(comparison(), target_accuracy=0.88)
    row = row_of(summary, "ho-sfl")
    assert (row.num_reached_target, row.samples_to_target) == (2, 350)
    summary = summarise(comparison(), target_accuracy=0.92)
    row = row_of(summary, "sflv1")
    assert (row.num_reached_target, row.samples_to_target, row.mb_to_target) == (1, None, None)
    assert "| 1/2 seeds |" in summary_markdown(summary, comparison())


def test_a_target_that_is_reached_when_first_looked_at_is_said_to_say_nothing() -> None:
    (warning,) = summarise(comparison(), target_accuracy=0.6).warnings
    assert "target of 60.0% is reached at the first evaluation by SFLV1:" in warning
    once = [make_run("ho-sfl", 0, [0.8]), make_run("sflv1", 0, [0.8])]
    assert summarise(once, target_accuracy=0.6).warnings == summarise(once).warnings
    for run in (runs := comparison()):  # as runs are: evaluated before the first round
        untrained = run.rounds.iloc[:1].assign(round=0, samples_seen=0, accuracy=0.1)
        object.__setattr__(run, "rounds", pd.concat([untrained, run.rounds], ignore_index=True))
    assert summarise(runs, target_accuracy=0.6).warnings == (warning,)


def test_clients_on_another_device_are_said_and_their_runs_are_flowers() -> None:
    runs = [*comparison(), make_run("hosl", 0, [0.7, 0.8], device="cuda")]
    (warning,) = [w for w in summarise(runs).warnings if "made in the same way" in w]
    assert "Flower with clients on cuda: hosl" in warning
    assert Runner.of(runs[-1].result) == FLOWER


def test_the_best_of_several_sfl_methods_sets_the_default_target_but_v1_is_the_reference() -> None:
    runs = [*comparison(), make_run("sflv2", 0, [0.5, 0.96]), make_run("sflv2", 1, [0.5, 0.98])]
    summary = summarise(runs)
    assert summary.target_accuracy == pytest.approx(0.9 * 0.97)
    assert summary.sfl_label == "SFLV1"
    without_v1 = summarise([run for run in runs if run.result.method != "sflv1"])
    assert without_v1.sfl_label == "SFLV2"


@pytest.mark.parametrize("target", [0.0, -0.1, 83.8, float("nan")])
def test_a_target_that_is_no_fraction_is_refused(target: float) -> None:
    with pytest.raises(UserError, match="target accuracy must be a fraction"):
        summarise(comparison(), target_accuracy=target)


# --- controls -----------------------------------------------------------------------------------


def test_no_gain_is_shown_where_frozen_matches_sfl() -> None:
    runs = [
        make_run("sflv1", 0, [0.838]),
        make_run("sflv1", 1, [0.840]),
        make_run("frozen", 0, [0.838]),
        make_run("frozen", 1, [0.825]),  # this seed alone would pass: the mean gap is 0.75 points
        make_run("ho-sfl", 0, [0.9]),
        make_run("ho-sfl", 1, [0.9]),
    ]
    summary = summarise(runs)
    assert all(row.gain_recovered_mean_percent is None for row in summary.rows)
    (warning,) = summary.warnings
    assert "ends less than 1 point above a frozen client (83.9 % against 83.1 %)" in warning
    assert warning in summary_markdown(summary, runs)


def test_a_single_weak_seed_is_left_out_and_named() -> None:
    runs = comparison()
    runs[4] = make_run("frozen", 0, [0.5, 0.6, 0.65, 0.895])
    summary = summarise(runs)
    row = row_of(summary, "ho-sfl")
    assert row.num_gain_seeds == 1
    assert row.gain_recovered_mean_percent == pytest.approx(75)
    assert summary.warnings[0].startswith("Seeds [0] are left out of client gain recovered")


def test_exactly_one_point_is_enough() -> None:
    runs = [make_run("sflv1", 0, [0.82]), make_run("frozen", 0, [0.81])]
    assert summarise(runs).warnings == ()


def test_seeds_without_both_controls_are_not_in_the_gain() -> None:
    row = row_of(summarise([*comparison(), make_run("ho-sfl", 2, [0.5] * 4)]), "ho-sfl")
    assert row.num_completed == 3
    assert row.num_gain_seeds == 2
    assert row.gain_recovered_mean_percent == pytest.approx(77.5)


@pytest.mark.parametrize("absent", ["frozen", "sflv1"])
def test_a_missing_control_is_said(absent: str) -> None:
    summary = summarise([run for run in comparison() if run.result.method != absent])
    assert all(row.gain_recovered_mean_percent is None for row in summary.rows)
    assert any(w.startswith("No seed has completed runs of both") for w in summary.warnings)
    assert (summary.target_accuracy is None) == (absent == "sflv1")


def in_turn(seed: int, accuracy: float, *, frozen: bool, **changes: Any) -> Run:
    """A run whose server steps for every client's batch."""
    method = "cse-fsl" if frozen else "sflv2"
    options = {"frozen_client": True} if frozen else {}
    label = "Frozen, in turn" if frozen else "SFLV2"
    config = {"method": method, "root_seed": seed, "options": options}
    return make_run(method, seed, [accuracy], label=label, config=config, **changes)


def test_servers_that_step_in_turn_have_controls_of_their_own() -> None:
    runs = [
        *(make_run("sflv1", 0, [0.9]), make_run("frozen", 0, [0.5]), make_run("ho-sfl", 0, [0.7])),
        *(in_turn(0, 0.95, frozen=False), in_turn(0, 0.75, frozen=True)),
        make_run("heron-sfl", 0, [0.8], label="HERON-SFL"),
    ]
    summary = summarise(runs)
    assert summary.warnings == () and summary.sfl_label == "SFLV1"
    gains = {row.label: row.gain_recovered_mean_percent for row in summary.rows}
    assert gains["HO-SFL"] == pytest.approx(50)
    assert gains["HERON-SFL"] == pytest.approx(25)  # (80 - 75) / (95 - 75), not 75
    assert gains["SFLV1"] == gains["SFLV2"] == pytest.approx(100)
    assert gains["Frozen client"] == gains["Frozen, in turn"] == pytest.approx(0)
    text = summary_markdown(summary, runs)
    assert "SFLV2 and Frozen, in turn (for SFLV2, Frozen, in turn, HERON-SFL)" in text
    assert "## Against first-order SFL" in text and "## Against a frozen client" in text


def test_a_control_of_the_other_kind_of_server_stands_in_with_a_warning() -> None:
    runs = [*comparison(), make_run("heron-sfl", 0, [0.5, 0.86, 0.86, 0.86], label="HERON-SFL")]
    summary = summarise(runs)
    assert row_of(summary, "heron-sfl").gain_recovered_mean_percent == pytest.approx(80)
    (warning,) = summary.warnings
    assert warning.startswith("Servers of HERON-SFL step for every client's batch in turn")


def test_controls_have_the_setting_of_their_row() -> None:
    def of(clients: int, *finals: float) -> list[Run]:
        return [
            make_run(
                method,
                0,
                [final],
                label=f"{method}, {clients} clients",
                config={"method": method, "clients": clients},
            )
            for method, final in zip(("sflv1", "frozen", "ho-sfl"), finals, strict=False)
        ]

    summary = summarise([*of(100, 0.9, 0.5, 0.7), *of(300, 0.8, 0.7, 0.725)])
    gains = {row.label: row.gain_recovered_mean_percent for row in summary.rows}
    assert gains["ho-sfl, 100 clients"] == pytest.approx(50)
    assert gains["ho-sfl, 300 clients"] == pytest.approx(25)
    assert any(w.startswith("Rows differ in clients: each is held") for w in summary.warnings)
    alone = summarise([*of(100, 0.9, 0.5, 0.7), *of(300, 0.8)])
    assert [row.gain_recovered_mean_percent for row in alone.rows][-1] is None


def test_rows_follow_the_order_of_labels() -> None:
    runs = [
        make_run("sflv1", 0, [0.6], label="A weak SFL"),
        make_run("sflv1", 0, [0.9], label="Z tuned SFL"),
        make_run("frozen", 0, [0.5]),
    ]
    summary = summarise(runs, order=["Z tuned SFL", "frozen", "A weak SFL"])
    assert [row.label for row in summary.rows] == ["Z tuned SFL", "Frozen client", "A weak SFL"]
    assert summary.sfl_label == "Z tuned SFL"
    assert summary.rows[2].gain_recovered_mean_percent == pytest.approx(25)


def test_several_commits_and_unequal_evaluations_are_said() -> None:
    runs = comparison()
    runs[0] = make_run("ho-sfl", 0, [0.86] * 4, commit="d" * 40)
    (warning,) = summarise(runs).warnings
    assert "dddddddddddd: HO-SFL" in warning and "several versions of the code" in warning
    runs = comparison()
    runs[4:] = [make_run("frozen", seed, [0.6, 0.7], samples_per_evaluation=200) for seed in (0, 1)]
    (warning,) = summarise(runs).warnings
    assert warning.startswith("Methods were evaluated at different intervals, in samples")


@pytest.mark.parametrize(
    ("method", "client", "options", "is_inert"),
    [
        ("heron-sfl", {"name": "sgd", "momentum": 0.9, "lifetime": "round"}, {}, True),
        ("heron-sfl", {"name": "adamw", "lifetime": "round"}, {}, True),
        ("heron-sfl", {"name": "adamw", "lifetime": "run"}, {}, False),
        ("heron-sfl", {"name": "adamw", "lifetime": "round"}, {"local_steps": 2}, False),
        ("heron-sfl", {"name": "adamw", "lifetime": "batch"}, {"local_steps": 2}, True),
        ("heron-sfl", {"name": "sgd", "momentum": 0.0, "lifetime": "round"}, {}, False),
        ("fedzo", {"name": "adamw", "lifetime": "round"}, {}, False),  # five local steps
        ("frozen", {"name": "adamw", "lifetime": "round"}, {}, False),  # its clients take none
        ("gone", {"name": "adamw", "lifetime": "round"}, {}, False),  # a plug-in not at hand
    ],
)
def test_moments_that_do_nothing_are_said(
    method: str, client: dict[str, Any], options: dict[str, Any], is_inert: bool
) -> None:
    config = {"method": method, "client": client, "options": options}
    runs = [make_run(method, 0, [0.5], label="Mine", config=config)]
    warnings = summarise(runs).warnings
    assert any(w.startswith("Mine: moments of the client's") for w in warnings) == is_inert


# --- significance -------------------------------------------------------------------------------


def seeds(method: str, finals: Sequence[float], **changes: Any) -> list[Run]:
    return [make_run(method, seed, [final], **changes) for seed, final in enumerate(finals)]


def test_significance_against_sfl_is_paired_over_seeds() -> None:
    # Differences of 1, 2 and 3 points: mean 2, standard error 1 / sqrt(3), t = sqrt(12).
    # With 2 degrees of freedom p = 1 - t / sqrt(2 + t^2) and t(0.975) = 4.30265.
    runs = seeds("sflv1", [0.80, 0.70, 0.90]) + seeds("ho-sfl", [0.81, 0.72, 0.93])
    runs += seeds("frozen", [0.5, 0.5, 0.5])
    summary = summarise(runs)
    row = row_of(summary, "ho-sfl")
    assert row.num_seeds_with_sfl == 3
    assert row.difference_to_sfl_points == pytest.approx(2)
    assert row.p_value == pytest.approx(1 - (12 / 14) ** 0.5)
    assert row.difference_to_sfl_low_points == pytest.approx(2 - 4.302653 / 3**0.5)
    assert row.difference_to_sfl_high_points == pytest.approx(2 + 4.302653 / 3**0.5)
    assert row.sign_flip_p_value == 2 / 8  # of 8 sign patterns only +++ and --- are as far out
    sfl = row_of(summary, "sflv1")
    assert sfl.num_seeds_with_sfl is sfl.difference_to_sfl_points is sfl.p_value is None
    text = summary_markdown(summary, runs)
    assert "## Against SFLV1" in text
    assert "| HO-SFL | SFLV1 | 3 | +2.0 | -0.5 to +4.5 | 0.074 | 0.250 |" in text
    against_sfl, against_frozen = text.split("## Against SFLV1")[1].split("## Against Frozen")
    assert "\n| SFLV1 | " not in against_sfl and "| Frozen client | SFLV1 |" in against_sfl
    # Against frozen, SFLV1 is ahead by 30, 20 and 40 points and HO-SFL by 31, 22 and 43.
    assert row.difference_to_frozen_points == pytest.approx(32)
    assert "| SFLV1 | Frozen client | 3 | +30.0 | +5.2 to +54.8 | 0.035 | 0.250 |" in against_frozen
    assert row_of(summary, "frozen").num_seeds_with_frozen is None
    assert "4 differences are tested" in text and "below 0.0125" in text


def test_below_three_common_seeds_nothing_is_said() -> None:
    summary = summarise(comparison())
    row = row_of(summary, "ho-sfl")
    assert (row.num_seeds_with_sfl, row.p_value) == (2, None)
    assert row.difference_to_sfl_low_points is None
    assert "Nothing can be said of significance" in summary_markdown(summary, comparison())


def test_only_common_seeds_are_paired() -> None:
    runs = seeds("sflv1", [0.8, 0.7, 0.9]) + seeds("ho-sfl", [0.81, 0.72, 0.93, 0.1])
    runs[1] = make_run("sflv1", 1, [0.7], status="failed")
    assert row_of(summarise(runs), "ho-sfl").num_seeds_with_sfl == 2


# --- budgets ------------------------------------------------------------------------------------


def test_unequal_samples_are_expected_under_a_budget_of_bytes() -> None:
    by_bytes: dict[str, Any] = {"ended_by": "bytes"}
    runs = seeds("sflv1", [0.8], samples_per_evaluation=100, **by_bytes)
    runs += seeds("frozen", [0.6], samples_per_evaluation=900, **by_bytes)
    summary = summarise(runs)
    assert summary.warnings == ()
    assert row_of(summary, "sflv1").ended_by == "bytes"
    text = summary_markdown(summary, runs)
    assert "Runs were ended by: bytes." in text
    assert "compared at equal bytes" in text and "compared at equal samples" not in text
    runs += seeds("ho-sfl", [0.7], uplink_bytes=4_000_000, **by_bytes)
    (warning,) = summarise(runs).warnings
    assert "SFLV1 4, Frozen client 4, HO-SFL 5 MB" in warning


def test_different_budgets_are_said() -> None:
    runs = seeds("sflv1", [0.8], ended_by="bytes") + seeds("frozen", [0.6], ended_by="rounds")
    (warning,) = summarise(runs).warnings
    assert "SFLV1 by bytes; Frozen client by rounds" in warning


def test_a_run_that_ended_at_its_target_has_no_final_accuracy_to_compare() -> None:
    config = {"target_accuracy": 0.8}
    at = {"config": config, "config_hash": config_hash(config), "ended_by": "accuracy"}
    late = at | {"ended_by": "rounds"}
    runs = [
        *seeds("sflv1", [0.8, 0.81, 0.82], **at),
        *seeds("ho-sfl", [0.8, 0.8, 0.83], samples_per_evaluation=300, **at),
        *seeds("frozen", [0.6, 0.6, 0.6], samples_per_evaluation=900, **late),
    ]
    summary = summarise(runs)
    assert summary.target_accuracy == 0.8  # what the runs were to reach
    assert len(summary.warnings) == 1 and "compare samples and bytes" in summary.warnings[0]
    assert "Runs end where they reach the target" in summary_markdown(summary, runs)
    row = row_of(summary, "ho-sfl")
    assert row.gain_recovered_mean_percent is row.p_value is None
    assert row.samples_to_target == 300
    assert summarise(runs, target_accuracy=0.5).target_accuracy == 0.5


# --- fairness and status ------------------------------------------------------------------------


def test_unequal_samples_are_said() -> None:
    runs = comparison()[2:]
    runs += [make_run("ho-sfl", seed, [0.8], samples_per_evaluation=500) for seed in (0, 1)]
    (warning,) = summarise(runs).warnings
    assert "SFLV1 400, Frozen client 400, HO-SFL 500" in warning
    close = [make_run("ho-sfl", seed, [0.8], samples_per_evaluation=403) for seed in (0, 1)]
    assert summarise(comparison()[2:] + close).warnings == ()


def test_rows_that_were_made_in_different_ways_are_said() -> None:
    runs = comparison()[2:]
    plain = [make_run("ho-sfl", seed, [0.8] * 4, engine="plain", device="cuda") for seed in (0, 1)]
    (warning,) = summarise(runs + plain).warnings
    assert "(Flower: SFLV1, Frozen client; plain loops on cuda: HO-SFL)" in warning
    row = row_of(summarise(runs + plain), "ho-sfl")
    assert row.num_exchanges is None and row.total_mb is not None  # nobody counted round trips
    assert summarise(plain[:1]).warnings == summarise([make_run("ho-sfl", 0, [0.8] * 4)]).warnings


def test_dropped_clients_are_said_where_nobody_asked_for_faults() -> None:
    events = {"dropped_clients": 3, "dropped_non_finite": 3}
    dropping = [make_run("ho-sfl", seed, [0.8] * 4, events=events) for seed in (0, 1)]
    (warning,) = summarise(comparison()[2:] + dropping).warnings
    assert "(HO-SFL 6 times)" in warning and "dropped_non_finite" in warning
    asked = {**dropping[0].result.config, "faults": {"drop": 0.1}}
    runs = [make_run("ho-sfl", seed, [0.8] * 4, events=events, config=asked) for seed in (0, 1)]
    assert summarise(comparison()[2:] + runs).warnings == ()


def test_failed_and_interrupted_seeds_are_counted_named_and_kept_out_of_means() -> None:
    failed = make_run(
        "ho-sfl", 2, [0.1], status="failed", error="client 3: out of memory\nTraceback"
    )
    interrupted = make_run("ho-sfl", 3, [0.2], status="interrupted")
    runs = [*comparison(), failed, interrupted]
    summary = summarise(runs)
    row = row_of(summary, "ho-sfl")
    assert (row.num_seeds, row.num_completed, row.num_failed, row.num_interrupted) == (4, 2, 1, 1)
    assert row.accuracy_mean_percent == pytest.approx(87.5)
    text = summary_markdown(summary, runs)
    assert "| HO-SFL | 2/4 (1 failed, 1 interrupted) |" in text
    assert "HO-SFL, seed 2, failed after round 1 and is not in the means: client 3: out of" in text
    assert "HO-SFL, seed 3, interrupted after round 1" in text
    assert "Traceback" not in text


def test_a_method_whose_runs_all_failed_keeps_its_row() -> None:
    failed = make_run("sflv2", 0, [], status="failed", samples_seen=0)
    summary = summarise([*comparison(), failed])
    row = row_of(summary, "sflv2")
    assert row.num_completed == 0
    assert row.accuracy_mean_percent is row.total_mb is row.wall_time_s is None
    assert "| SFLV2 | 0/1 (1 failed) | – | – | – |" in summary_markdown(summary, [failed])


def test_labels_split_a_method_into_rows() -> None:
    runs = comparison() + [
        make_run("ho-sfl", seed, [0.9] * 4, label="HO-SFL, 8 | 8") for seed in (0, 1)
    ]
    summary = summarise(runs)
    assert [row.label for row in summary.rows if row.method == "ho-sfl"] == [
        "HO-SFL",
        "HO-SFL, 8 | 8",
    ]
    assert "| HO-SFL, 8 \\| 8 |" in summary_markdown(summary, runs)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs to compare"),
        ([make_run("ho-sfl", 0, [0.5])] * 2, r"HO-SFL has several runs of one seed \(\[0, 0\]\)"),
        (
            [make_run("ho-sfl", 0, [0.5]), make_run("sflv1", 0, [0.5], task="sst2")],
            "runs of several tasks cannot be compared: digits, sst2",
        ),
        (
            [make_run("ho-sfl", 0, [0.5]), make_run("sflv1", 1, [0.5], label="HO-SFL")],
            "the label 'HO-SFL' stands for several methods",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(runs: list[Run], message: str) -> None:
    with pytest.raises(UserError, match=message):
        summarise(runs)


# --- files and terminal -------------------------------------------------------------------------


def test_write_summary(tmp_path: Path) -> None:
    out_dir = tmp_path / "comparison"
    summary = write_summary(
        out_dir,
        comparison(),
        learning_rate_note="best of 0.1 and 0.01 per method on seed 99.",
        title="Three methods",
    )
    table = pd.read_csv(out_dir / "summary.csv")
    assert list(table["method"]) == ["ho-sfl", "sflv1", "frozen"]
    assert list(table.columns) == list(summary.table.columns)
    assert table.loc[0, "gain_recovered_mean_percent"] == 77.5
    assert table.loc[0, "total_mb"] == 16
    assert bool(table["samples_to_target"].isna()[2])
    text = (out_dir / "summary.md").read_text(encoding="utf-8")
    for expected in (
        "# Three methods",
        "| HO-SFL | 2/2 | 87.5 ± 2.1 | 88.5 ± 0.7 | 77.5 ± 3.5 | 400 | 250 | 10 |",
        "| HO-SFL | 12 | 4 | 16 | 8 | 3 | 0 | 2.5 | 5 | 2 |",
        "compared at equal samples seen",
        "Client gain recovered = (method − frozen) / (first-order SFL − frozen)",
        "Controls, first-order SFL and frozen client: SFLV1 and Frozen client.",
        "Target accuracy: 82.8 %",
        "Learning rates: best of 0.1 and 0.01 per method on seed 99.",
        "- Versions: python 3.11.7, torch 2.13.0",
        "- Commit: " + "c" * 40,
        "- Hardware: cpu_model: Some CPU, cores: 2",
        "- Command: `leansplit compare --note 'two words'`",
        "- Seeds: 0, 1",
        "- Date: 2026-01-01 to 2026-01-02",
    ):
        assert expected in text
    assert text.count("- Command:") == 1
    assert "## Warnings" not in text
    assert sorted(path.name for path in out_dir.iterdir()) == ["summary.csv", "summary.md"]


def test_what_clients_reach_alone_has_a_column_where_it_is_known() -> None:
    runs = [
        *comparison(),
        *(make_run("cse-fsl", seed, [0.9], local_accuracy=0.6 + seed / 10) for seed in (0, 1)),
    ]
    summary = summarise(runs)
    alone = [row.local_accuracy_mean_percent for row in summary.rows]
    assert alone == [None, None, None, pytest.approx(65)]
    text = summary_markdown(summary, runs)
    assert "| Best (%) | Client and head alone (%) | Client gain recovered (%) |" in text
    assert "| cse-fsl | 2/2 | 90.0 ± 0.0 | 90.0 ± 0.0 | 65.0 ± 7.1 |" in text
    assert "without the server" in text
    plain = summary_markdown(summarise(comparison()), comparison())
    assert plain.startswith("# Comparison on digits\n")
    assert "head alone" not in plain and "without the server" not in plain


def test_metrics_of_texts_have_columns_where_they_are_known() -> None:
    measures = {0: {"perplexity": 4.5, "bleu": 30.0}, 1: {"perplexity": 4.7, "bleu": 32.0}}
    runs = [*comparison(), *(make_run("hosl", s, [0.9], measures=measures[s]) for s in (0, 1))]
    summary = summarise(runs)
    row = summary.rows[-1]
    assert (row.perplexity_mean, row.bleu_mean) == (pytest.approx(4.6), 31)
    assert row.macro_f1_mean_percent is None and summary.rows[0].perplexity_mean is None
    text = summary_markdown(summary, runs)
    assert "| Best (%) | Perplexity | BLEU | Client gain recovered (%) |" in text
    assert "| 4.600 ± 0.141 | 31.0 ± 1.4 |" in text and "sacrebleu" in text
    assert "Macro F1" not in text and "Perplexity" not in summary_markdown(
        summarise(comparison()), comparison()
    )
    classified = make_run("hosl", 0, [0.9], measures={"f1": 0.875})
    assert "| Macro F1 (%) |" in summary_markdown(summarise([classified]), [classified])
    assert "| 87.5 |" in summary_markdown(summarise([classified]), [classified])


def test_order_boundaries_have_a_column_where_clients_differ_in_them() -> None:
    boundaries = [
        {"boundary": "none", "zeroth_order_parameters": 0, "clients": [0, 2]},
        {"boundary": "pool1", "zeroth_order_parameters": 160, "clients": [1]},
    ]
    runs = [*comparison(), make_run("ho-fl", 0, [0.9], order_boundaries=boundaries)]
    text = summary_markdown(summarise(runs), runs)
    assert "| Order boundaries | Wall time (s) |" in text
    assert "| none × 2, pool1 × 1 |" in text and "| – | 2 |" in text
    assert "Order boundaries" not in summary_markdown(summarise(comparison()), comparison())


def test_an_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        write_summary(tmp_path / "file", comparison())


def test_terminal_table_fits_eighty_columns() -> None:
    runs = [*comparison(), make_run("ho-sfl", 2, [0.1], status="failed")]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(summarise(runs, target_accuracy=0.92), title="digits"))
    text = capture.get()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for expected in (
        "digits",
        "Frozen client",
        "87.5 ± 2.1",
        "77.5 ± 3.5",
        "1/2 seeds",
        "2/3 (1",
        "Target accuracy",
    ):
        assert expected in text


def with_costs(run: Run, predicted: dict[str, int], measured: dict[str, int]) -> Run:
    result = dataclasses.replace(
        run.result, predicted=CostFigures(**predicted), measured=CostFigures(**measured)
    )
    return dataclasses.replace(run, result=result)


def test_costs_beside_what_was_predicted() -> None:
    runs = comparison()
    assert "Predicted and measured" not in summary_markdown(summarise(runs), runs)
    step = {"client_step_flops": 10**9, "client_peak_memory_bytes": 2 * 10**6}
    close = step | {"client_peak_memory_bytes": 2_090_000}
    runs[0] = with_costs(runs[0], step | {"uplink_bytes": 0}, close | {"uplink_bytes": 0})
    assert summarise(runs).warnings == ()
    runs[1] = with_costs(runs[1], step, step | {"client_step_flops": 940_000_000})
    summary = summarise(runs)
    [warning] = summary.warnings
    assert warning.startswith("HO-SFL: the measured step differs from the predicted by -6.0%")
    text = summary_markdown(summary, runs)
    assert "| HO-SFL | 1 | 0.97 | 2 | 2.045 | 0 | 0 | – | – |" in text
    runs[0] = with_costs(runs[0], {"uplink_bytes": 0}, {"uplink_bytes": 5})
    assert any("measured uplink" in warning for warning in summarise(runs).warnings)
