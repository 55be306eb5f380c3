"""Figures of telemetry and of the estimator study, and the study's own numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from leansplit.errors import UserError
from leansplit.experiments.estimator_study import (
    build_problem,
    main,
    study,
    study_markdown,
    sweeps,
)
from leansplit.experiments.plots_telemetry import (
    plot_telemetry,
    study_figure,
    telemetry_by_label,
    telemetry_figure,
)
from leansplit.noise import DIRECTIONS
from leansplit.server_app.config import run_config
from leansplit.server_app.results import (
    RunResult,
    config_hash,
    ledger_table,
    read_run,
    rounds_table,
    write_files,
    write_run,
)
from leansplit.server_app.telemetry import TELEMETRY_FILE, telemetry_table
from leansplit.zeroth_order import ZerothOrderConfig, expected_cosine


def write_watched_run(
    folder: Path,
    label: str,
    *,
    seed: int = 0,
    cosine: float = 0.1,
    parts: tuple[str, ...] = ("client",),
    status: str = "completed",
) -> None:
    """A run folder with telemetry of forty rounds."""
    rows = [
        {
            "round": t,
            "samples_seen": 100 * t,
            "part": part,
            "local_step": 0,
            "num_clients": 4,
            "num_elements": 500,
            "num_directions": 5,
            "cosine": cosine * (1 + 0.1 * math.sin(t)),
            "norm_ratio": 10.0,
            "projection": 1.0,
            "relative_variance": 100.0,
            "true_norm": 0.3,
            "expected_cosine": expected_cosine(500, 5),
            "train_loss": 2.0,
        }
        for t in range(1, 41)
        for part in parts
    ]
    result = RunResult(
        method="ho-sfl",
        label=label,
        task="digits",
        status=status,
        config={},
        config_hash=config_hash({}),
        root_seed=seed,
        started_at="2026-01-01T00:00:00+00:00",
    )
    write_run(folder, result, rounds_table([]), ledger_table([]))
    content = telemetry_table(rows).to_parquet(index=False)
    assert content is not None
    write_files(folder, {TELEMETRY_FILE: content})


def test_lines_are_means_over_stretches_and_seeds(tmp_path: Path) -> None:
    for seed, cosine in enumerate((0.1, 0.3)):
        write_watched_run(tmp_path / str(seed), "HO-SFL", seed=seed, cosine=cosine)
    runs = [read_run(tmp_path / str(seed)) for seed in (0, 1)]
    tables = telemetry_by_label(runs)
    assert list(tables) == ["HO-SFL"] and len(tables["HO-SFL"]) == 80
    top, bottom = telemetry_figure(tables, title="digits").axes
    mean = np.asarray(top.lines[0].get_ydata())
    assert len(mean) == 20 and np.all(np.abs(mean - 0.2) < 0.02)
    assert np.asarray(top.lines[1].get_ydata()) == pytest.approx(expected_cosine(500, 5))
    assert np.asarray(bottom.lines[0].get_ydata()) == pytest.approx(10.0)
    files = plot_telemetry(runs, tmp_path / "out")
    assert [file.name for file in files] == ["telemetry.png", "telemetry.svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_parts_are_lines_of_their_own_and_unfinished_runs_are_not_drawn(tmp_path: Path) -> None:
    write_watched_run(tmp_path / "a", "ZO", parts=("client", "server"))
    write_watched_run(tmp_path / "b", "Broken", status="failed")
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    assert list(telemetry_by_label(runs)) == ["ZO, client", "ZO, server"]


def test_without_telemetry_nothing_is_written(tmp_path: Path) -> None:
    write_watched_run(tmp_path / "a", "HO-SFL")
    (tmp_path / "a" / TELEMETRY_FILE).unlink()
    assert plot_telemetry([read_run(tmp_path / "a")], tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_defined_leave_gaps_not_errors(tmp_path: Path) -> None:
    write_watched_run(tmp_path / "a", "HO-SFL", cosine=math.nan)
    [top, _] = telemetry_figure(telemetry_by_label([read_run(tmp_path / "a")]), title="digits").axes
    assert len(np.asarray(top.lines[0].get_xdata())) == 0


def small_workload(**settings: object):
    return run_config("ho-sfl", {"task": "digits", "task_options.max_train": 100, **settings})


def test_the_study_follows_theory_and_uses_disjoint_groups() -> None:
    problem = build_problem(small_workload().workload(), "surrogate", batch_size=32)
    rows = study(problem, ZerothOrderConfig(), [4, 64, 256])
    assert [row.num_estimates for row in rows] == [32, 4, 1]
    assert math.isnan(rows[-1].cosine_std)
    for row in rows:
        assert row.cosine == pytest.approx(row.expected_cosine, rel=0.15)
    assert rows[0].cosine < rows[1].cosine < rows[2].cosine


def test_surrogate_and_loss_have_the_same_gradient_and_close_estimates() -> None:
    """lambda comes from the same point, so <lambda, f_c> and the loss agree to first order."""
    found = {}
    for kind in ("surrogate", "loss"):
        problem = build_problem(small_workload().workload(), kind, batch_size=32)
        found[kind] = (problem.true_gradient, study(problem, ZerothOrderConfig(), [64])[0])
    torch.testing.assert_close(found["surrogate"][0], found["loss"][0], rtol=1e-4, atol=1e-7)
    assert found["loss"][1].cosine == pytest.approx(found["surrogate"][1].cosine, abs=0.02)


def test_weights_come_from_a_file_and_must_fit(tmp_path: Path) -> None:
    workload = small_workload().workload()
    state = workload.build_model(workload.load_task()).full_state_dict()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({k: 2 * v for k, v in state.items()}, path)
    plain = build_problem(workload, "surrogate", batch_size=8)
    loaded = build_problem(workload, "surrogate", batch_size=8, weights=path)
    assert torch.equal(loaded.vector, 2 * plain.vector)
    with pytest.raises(UserError, match="cannot read weights"):
        build_problem(workload, "surrogate", batch_size=8, weights=tmp_path / "none")
    (tmp_path / "damaged").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot read weights"):
        build_problem(workload, "surrogate", batch_size=8, weights=tmp_path / "damaged")
    safetensors.torch.save_file({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="unexpected"):
        build_problem(workload, "surrogate", batch_size=8, weights=path)
    with pytest.raises(UserError, match="batch_size must be from 1 to 100"):
        build_problem(workload, "surrogate", batch_size=101)


def test_the_studys_table_and_figure() -> None:
    rows = []
    for cut in ("pool1", "pool2"):
        problem = build_problem(small_workload(cut_layer=cut).workload(), "surrogate", batch_size=8)
        for sweep, config, counts in sweeps([1, 4], 1e-3, [1e-2, 1e-3], 2):
            rows += study(problem, config, counts, sweep=sweep)
    assert len(rows) == 2 * (len(DIRECTIONS) * 2 * 2 + 2 * 2)
    text = study_markdown(rows, ["a fact"])
    assert text.count("\n| pool") == len(rows) and "nan" not in text
    table = pd.DataFrame([dataclasses.asdict(row) for row in rows])
    left, middle, right = study_figure(table).axes
    assert [line.get_label() for line in left.lines][:2] == ["d = 80", "d = 664"]
    assert len(middle.lines) == 4 + 2 and len(right.lines) == 4
    one_cut = study_figure(table[table["cut_layer"] == "pool1"]).axes[0]
    assert [line.get_label() for line in one_cut.lines][:3] == ["gaussian", "rademacher", "sphere"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-directions", "1,two"], "--num-directions takes numbers"),
        (["--scales", "0"], "--scales must be a finite number above 0"),
        (["--objective", "acurracy"], "unknown objective 'acurracy'"),
        (["--cut-layer", "pool9"], "unknown cut layer 'pool9'"),
        (["--set", "model_options.chanels=[1]"], "chanels"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = run_study(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_command_writes_table_and_plot(tmp_path: Path) -> None:
    done = run_study(
        "--num-directions", "1,4", "--scales", "1e-3", "--scales-at", "2", "--batch-size", "4",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {
        f"estimator_study.{suffix}" for suffix in ("csv", "md", "png", "svg")
    }
    assert "| pool2 | 664 | surrogate | gaussian |" in done.stdout


def run_study(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)
