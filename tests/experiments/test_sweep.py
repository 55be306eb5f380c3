"""Sweeps: what is planned, what is refused before anything starts, what is measured and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from leansplit.errors import UserError
from leansplit.experiments.experiment import PlannedRun
from leansplit.experiments.sweep import Place, Sweep, base_experiment, plan_sweep, read_sweep
from leansplit.experiments.sweep_plots import sweep_figure
from leansplit.experiments.sweep_points import Measured, Metric, measure
from leansplit.experiments.sweep_report import (
    is_sweep,
    rebuild_sweep,
    run_sweep,
    sweep_markdown,
    write_sweep,
)
from leansplit.server_app.results import Run

MakeRun = Callable[..., Run]
SMALL = {
    "workers": -1,
    "clients": 6,
    "cohort": 2,
    "rounds": 2,
    "task_options.max_train": 60,
    "task_options.max_test": 20,
}


def plan(
    over: str,
    methods: Sequence[str] = ("ho-sfl", "sflv1", "frozen"),
    seeds: Sequence[int] = (0, 1),
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Sweep, list[PlannedRun]]:
    load = base_experiment(None, methods, None, seeds=seeds)
    return plan_sweep(load, over, overrides if overrides is not None else SMALL)


def test_methods_that_use_the_key_run_at_every_value_and_others_once() -> None:
    sweep, runs = plan("P=10,1,5")
    assert (sweep.key, sweep.name, sweep.values) == ("probe.num_perturbations", "P", (1, 5, 10))
    assert sweep.order == ("ho-sfl", "sflv1", "frozen")
    assert sorted((r.label, r.config.seed) for r in runs) == sorted(
        (label, seed)
        for label in ("HO-SFL, P = 1", "HO-SFL, P = 5", "HO-SFL, P = 10", "SFLV1", "Frozen client")
        for seed in (0, 1)
    )
    assert [run.config.seed for run in runs] == [0] * 5 + [1] * 5  # something to see early
    assert sweep.places["HO-SFL, P = 5"] == Place("HO-SFL", 5)
    assert sweep.places["SFLV1"] == Place("SFLV1", None)
    assert next(iter(sweep.places.values())).row == "HO-SFL"
    # The symbol and the key are one sweep, in the same folders.
    assert {run.folder for run in plan("probe.num_perturbations=1,5,10")[1]} == {
        run.folder for run in runs
    }


def test_options_of_a_method_and_free_keys_can_be_swept() -> None:
    sweep, runs = plan("local_steps=1,2", ["sflv1", "frozen"])
    assert sweep.values == (1, 2) and len(runs) == 6
    sweep, _ = plan("cut_layer=pool2,pool1", ["frozen"])
    assert sweep.values == ("pool2", "pool1")  # no order of their own
    sweep, _ = plan("model_options.channels=[8, 16],[16, 32]", ["frozen"])
    assert sweep.values == ([8, 16], [16, 32])


def test_alpha_implies_its_partition() -> None:
    sweep, runs = plan("alpha=10,0.1")
    assert sweep.values == (0.1, 10.0)
    assert {run.config.partition for run in runs} == {"dirichlet"}
    with pytest.raises(UserError, match="alpha has no effect under partition = iid"):
        plan("alpha=0.1,1", overrides={"partition": "iid"})


def test_an_experiment_gives_its_rows_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(
        'title = "E"\nseeds = [3]\ntarget_accuracy = 0.5\n[shared]\nclients = 10\ncohort = 2\n'
        '[[methods]]\nmethod = "ho-sfl"\nlabel = "Mine"\n[[methods]]\nmethod = "frozen"\n'
    )
    sweep, runs = plan_sweep(base_experiment(str(file), ["Mine"], None), "cohort=2,4", {})
    assert sweep.title == "E: sweep over cohort" and sweep.target_accuracy == 0.5
    assert [run.label for run in runs] == ["Mine, cohort = 2", "Mine, cohort = 4"]
    assert all(run.config.clients == 10 and run.config.seed == 3 for run in runs)
    with pytest.raises(UserError, match="remove --task"):
        base_experiment(str(file), [], "digits")


@pytest.mark.parametrize(
    ("over", "hint"),
    [
        ("P", "key=v1,v2,v3"),
        ("P=1", "two or more values"),
        ("P=1,,2", "two or more values"),
        ("P=1,1", "must differ"),
        ("P=1,many", "cannot be 'many'"),
        ("mu=1e-3,0", "above 0"),
        ("probe.num_perturbation=1,2", "did you mean 'probe.num_perturbations'"),
        ("coort=1,2", "did you mean 'cohort'"),
        ("cohort=2,700", "cohort of 700"),
        ("seed=1,2", "--seeds"),
        ("task=digits,cifar10", "several tasks"),
        ("clients=6,8", "swept and set"),
        ("local_steps=1,2", "no method here uses 'local_steps': ho-sfl, frozen"),
    ],
)
def test_mistakes_are_found_before_anything_starts(over: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        plan(over, ["ho-sfl", "frozen"], overrides={"clients": 100})


def test_a_sweep_needs_something_to_sweep() -> None:
    with pytest.raises(UserError, match="name what to sweep"):
        base_experiment(None, [], "digits")
    with pytest.raises(UserError, match="did you mean 'ho-sfl'"):
        plan("P=1,2", ["ho-slf"])


# --- numbers and figures -------------------------------------------------------------------------


@pytest.fixture
def results(make_run: MakeRun) -> tuple[Sweep, list[Run]]:
    """HO-SFL at P = 1, 10, 100 with two seeds; SFL and frozen clients once."""
    sweep, planned = plan("P=1,10,100", overrides={})
    accuracies = {1: 0.75, 10: 0.8, 100: 0.85}
    runs = []
    for run in planned:
        value = sweep.places[run.label].value
        accuracy = accuracies.get(value, 0.7 if run.config.method == "frozen" else 0.9)
        runs.append(
            make_run(
                run.config.method,
                run.config.seed,
                label=run.label,
                accuracy=accuracy + 0.01 * run.config.seed,
                settings={} if value is None else {"probe.num_perturbations": value},
                client_step_flops=int(1e9) * (value or 2),
                folder=run.folder,
            )
        )
    return sweep, runs


def metric_of(measured: Measured, name: str) -> Metric:
    return next(metric for metric in measured.metrics if metric.name == name)


def test_every_value_is_a_comparison_of_its_own(results: tuple[Sweep, list[Run]]) -> None:
    measured = measure(*results)
    assert [(p.row, p.value) for p in measured.points] == [
        ("HO-SFL", 1),
        ("HO-SFL", 10),
        ("HO-SFL", 100),
        ("SFLV1", None),
        ("Frozen client", None),
    ]
    first = measured.points[0]
    assert first.means["accuracy_percent"] == pytest.approx(75.5)
    assert first.stds["accuracy_percent"] == pytest.approx(0.5**0.5)
    assert first.means["gain_recovered_percent"] == pytest.approx(25)  # (75 - 70) / (90 - 70)
    assert first.means["total_mb"] == 16 and first.stds["total_mb"] == 0
    assert measured.target_accuracy == pytest.approx(0.9 * 0.905)
    assert first.means["samples_to_target"] is None  # 75.5 % stay below 81.5 %
    assert measured.points[2].means["samples_to_target"] == 400
    assert measured.points[3].means["gain_recovered_percent"] == pytest.approx(100)
    assert measured.warnings == ()


def test_a_control_at_another_value_is_no_control(make_run: MakeRun) -> None:
    """Under skew every alpha has its own SFL and its own frozen client."""
    sweep, planned = plan("alpha=0.1,10", seeds=[0], overrides={})
    accuracy = {("sflv1", 0.1): 0.6, ("frozen", 0.1): 0.4, ("ho-sfl", 0.1): 0.5}
    accuracy |= {("sflv1", 10): 0.9, ("frozen", 10): 0.8, ("ho-sfl", 10): 0.9}
    runs = []
    for run in planned:
        value = accuracy[run.config.method, sweep.places[run.label].value]
        runs.append(make_run(run.config.method, label=run.label, accuracy=value))
    gains = [p.means["gain_recovered_percent"] for p in measure(sweep, runs).points]
    assert gains == pytest.approx([50, 100, 100, 100, 0, 0])


def test_warnings_name_their_values(results: tuple[Sweep, list[Run]], make_run: MakeRun) -> None:
    sweep, runs = results
    lost = make_run("ho-sfl", 0, label="HO-SFL, P = 10", status="failed", error="lost")
    kept = [run for run in runs if run.result.label not in ("HO-SFL, P = 10", "HO-SFL, P = 100")]
    warnings = measure(sweep, [*kept, lost]).warnings
    assert warnings[0] == "No result at P = 100."
    assert any(w.startswith("At P = 10: HO-SFL, P = 10, seed 0, failed") for w in warnings)


def test_figures_use_the_common_look_and_a_fitting_axis(results: tuple[Sweep, list[Run]]) -> None:
    measured = measure(*results)
    figure = sweep_figure(measured, metric_of(measured, "accuracy_percent"))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "P, probe.num_perturbations"
    assert axes.get_ylabel() == "Final accuracy (%)" and axes.get_yscale() == "linear"
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert to_hex(lines["HO-SFL"].get_color()) == "#000000"
    assert to_hex(lines["SFLV1"].get_color()) == "#d55e00"
    assert to_hex(lines["Frozen client"].get_color()) == "#707070"
    np.testing.assert_allclose(np.asarray(lines["HO-SFL"].get_xdata()), [1, 10, 100])
    np.testing.assert_allclose(np.asarray(lines["SFLV1"].get_ydata()), [90.5, 90.5])
    [legend] = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["HO-SFL", "SFLV1", "Frozen client"]
    gflops = sweep_figure(measured, metric_of(measured, "client_step_gflops")).axes[0]
    assert gflops.get_yscale() == "log"


@pytest.mark.parametrize("over", ["P=1,5,10", "probe.direction=gaussian,sphere"])
def test_values_within_a_decade_or_without_order_stand_side_by_side(
    over: str, make_run: MakeRun
) -> None:
    sweep, planned = plan(over, ["ho-sfl"], seeds=[0], overrides={})
    measured = measure(sweep, [make_run("ho-sfl", label=run.label) for run in planned])
    axes = sweep_figure(measured, metric_of(measured, "accuracy_percent")).axes[0]
    assert axes.get_xscale() == "linear"
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == over.partition("=")[2].split(",")
    np.testing.assert_allclose(np.asarray(axes.get_lines()[0].get_xdata()), range(len(labels)))


def test_a_sweep_is_rebuilt_from_its_results(
    results: tuple[Sweep, list[Run]], make_run: MakeRun, tmp_path: Path
) -> None:
    sweep, runs = results
    folder = tmp_path / "runs"
    files = write_sweep(folder, sweep, runs)
    names = {path.name for path in files}
    assert {"sweep.md", "sweep.csv", "report.html", "sweep_accuracy_percent.svg"} <= names
    assert is_sweep(folder) and read_sweep(folder / "sweep.json") == sweep
    before = {path.name: path.read_bytes() for path in files}
    make_run("ho-sfl", label="of another sweep")
    again = rebuild_sweep(folder)
    assert {path.name: path.read_bytes() for path in again.files} == before
    table = pd.read_csv(folder / "sweep.csv", dtype={"value": str}, keep_default_na=False)
    assert table["value"].tolist() == ["1", "10", "100", "", ""]
    assert table["accuracy_percent_mean"].tolist() == [75.5, 80.5, 85.5, 90.5, 70.5]
    markdown = sweep_markdown(again.measured)
    assert "| HO-SFL | 75.5 ± 0.7 | 80.5 ± 0.7 | 85.5 ± 0.7 |  |" in markdown
    assert "| SFLV1 |  |  |  | 90.5 ± 0.7 |" in markdown
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="not a sweep of ours"):
        rebuild_sweep(folder)


def test_a_tiny_sweep_runs_and_resumes(tmp_path: Path) -> None:
    said: list[str] = []

    @contextmanager
    def show_progress(_title: str) -> Any:
        yield lambda _progress: None

    sweep, runs = plan("mu=1e-4,1e-2", ["ho-sfl", "frozen"], seeds=[0])
    for _ in range(2):
        done = run_sweep(sweep, runs, tmp_path, show_progress=show_progress, say=said.append)
        assert not done.num_failed and not done.is_interrupted
    assert sum("done before" in line for line in said) == 3
    assert [point.value for point in done.measured.points] == [1e-4, 1e-2, None]
    assert (tmp_path / "ho-sfl-mu-0.0001" / "seed-0" / "result.json").exists()
    table = done.table
    assert table.row_count == 3


def test_telemetry_is_drawn_for_those_that_have_it(make_run: MakeRun) -> None:
    sweep, runs = plan("P=1,5", methods=("ho-sfl", "frozen"), seeds=(0,))
    telemetry = {"client": {"mean_true_norm": 0.5}}
    made = [
        make_run(run.config.method, label=run.label, telemetry=telemetry)
        if run.config.method == "ho-sfl"
        else make_run(run.config.method, label=run.label)
        for run in runs
    ]
    measured = measure(sweep, made)
    metric = next(m for m in measured.metrics if m.is_telemetry)
    assert metric.header == "True norm of the gradient"
    (legend,) = sweep_figure(measured, metric).legends
    assert [text.get_text() for text in legend.get_texts()] == ["HO-SFL"]
