"""Figures: what they show, that methods stay apart without colour, and that files are whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from leansplit.errors import UserError
from leansplit.experiments.figure_style import line_style
from leansplit.experiments.plots_accuracy import accuracy_curves, accuracy_figure, plot_accuracy
from leansplit.experiments.plots_partition import label_matrix, partition_figure, plot_partition
from leansplit.server_app.results import Run, RunResult, config_hash, ledger_table, rounds_table


def make_run(
    method: str,
    seed: int,
    points: Sequence[tuple[int, int, float]],
    *,
    label: str | None = None,
    status: str = "completed",
) -> Run:
    """A run with evaluations at (samples seen, bytes both ways, accuracy)."""
    rounds = rounds_table(
        {
            "round": i,
            "samples_seen": samples,
            "accuracy": accuracy,
            "loss": 1.0,
            "train_loss": 1.0,
            "uplink_bytes": total_bytes - total_bytes // 4,
            "downlink_bytes": total_bytes // 4,
            "num_exchanges": i,
            "wall_time_s": float(i),
        }
        for i, (samples, total_bytes, accuracy) in enumerate(points)
    )
    values: dict[str, Any] = {
        "method": method,
        "label": label or method.upper(),
        "task": "digits",
        "status": status,
        "config": {},
        "config_hash": config_hash({}),
        "root_seed": seed,
        "started_at": "2026-01-01T00:00:00+00:00",
    }
    return Run(result=RunResult(**values), rounds=rounds, ledger=ledger_table([]))


def learning_curve(top: float, bytes_per_sample: int) -> list[tuple[int, int, float]]:
    samples = range(0, 1001, 100)
    return [(n, n * bytes_per_sample, top * n / (n + 200)) for n in samples]


def comparison() -> list[Run]:
    methods = [("sflv1", 0.95, 9000), ("ho-sfl", 0.9, 9000), ("frozen", 0.7, 5000)]
    return [
        make_run(method, seed, learning_curve(top + 0.01 * seed, size + seed))
        for method, top, size in methods
        for seed in range(3)
    ]


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


def legend_of(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_curves_are_means_on_a_common_range() -> None:
    runs = [
        make_run("ho-sfl", 0, [(0, 0, 0.1), (100, 10, 0.5), (200, 20, 0.7)]),
        make_run("ho-sfl", 1, [(50, 5, 0.3), (150, 15, 0.5), (250, 25, 0.9)]),
    ]
    (curve,) = accuracy_curves(runs, "samples")
    assert curve.num_seeds == 2
    # Common range 50 to 200. Seed 0 there: 30, 50, 60, 70 %; seed 1: 30, 40, 50, 70 %.
    np.testing.assert_allclose(curve.x, [50, 100, 150, 200])
    np.testing.assert_allclose(curve.mean, [30, 45, 55, 70])
    assert curve.std is not None
    np.testing.assert_allclose(curve.std, [0, 50**0.5, 50**0.5, 0], atol=1e-9)


def test_bytes_are_interpolated_on_their_logarithm_and_zero_is_left_out() -> None:
    runs = [
        make_run("ho-sfl", 0, [(0, 0, 0.1), (1, 1_000_000, 0.2), (2, 100_000_000, 0.6)]),
        make_run("ho-sfl", 1, [(1, 1_000_000, 0.2), (2, 10_000_000, 0.4), (3, 100_000_000, 0.6)]),
    ]
    (curve,) = accuracy_curves(runs, "bytes")
    np.testing.assert_allclose(curve.x, [1, 10, 100])  # MB
    np.testing.assert_allclose(curve.mean, [20, 40, 60])
    assert curve.std is not None
    np.testing.assert_allclose(curve.std, 0, atol=1e-9)


def test_a_repeated_evaluation_counts_once_and_missing_accuracy_not_at_all() -> None:
    run = make_run("ho-sfl", 0, [(200, 2, 0.5), (100, 1, 0.4), (200, 2, 0.6), (300, 3, np.nan)])
    (curve,) = accuracy_curves([run], "samples")
    np.testing.assert_allclose(curve.x, [100, 200])
    np.testing.assert_allclose(curve.mean, [40, 60])
    assert curve.std is None


def test_seeds_whose_ranges_do_not_meet_become_one_point() -> None:
    runs = [make_run("ho-sfl", s, [(100, 1_000_000 + s, 0.5 + 0.2 * s)]) for s in (0, 1)]
    (curve,) = accuracy_curves(runs, "bytes")
    np.testing.assert_allclose(curve.x, [1.0000005])
    np.testing.assert_allclose(curve.mean, [60])
    accuracy_figure(runs, "bytes")


def test_only_completed_runs_are_drawn() -> None:
    runs = [*comparison(), make_run("ho-sfl", 3, learning_curve(0.1, 1), status="failed")]
    runs.append(make_run("sflv2", 0, learning_curve(0.1, 1), status="interrupted"))
    assert [c.label for c in accuracy_curves(runs, "samples")] == ["SFLV1", "HO-SFL", "FROZEN"]
    assert {c.num_seeds for c in accuracy_curves(runs, "samples")} == {3}
    with pytest.raises(UserError, match="nothing to plot against samples"):
        accuracy_figure([runs[-1]], "samples")


def test_samples_figure_says_what_it_shows() -> None:
    figure = accuracy_figure(comparison(), "samples")
    axes = axes_of(figure)
    assert axes.get_xlabel() == "Training samples seen, all clients"
    assert axes.get_ylabel() == "Accuracy (%)"
    assert axes.get_title(loc="left") == "digits: mean ± 1 std over 3 seeds"
    assert axes.get_xscale() == "linear"
    assert legend_of(figure) == ["SFLV1", "HO-SFL", "FROZEN"]
    assert len(axes.collections) == 3  # one band per method


def test_bytes_figure_has_a_logarithmic_axis_in_mb() -> None:
    axes = axes_of(accuracy_figure(comparison(), "bytes", order=["ho-sfl"]))
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "Traffic, uplink + downlink (MB)"
    line = axes.get_lines()[0]
    assert line.get_label() == "HO-SFL"
    np.testing.assert_allclose(np.asarray(line.get_xdata())[-1], 9, rtol=1e-3)


def test_seed_counts_that_differ_are_in_the_legend() -> None:
    figure = accuracy_figure(comparison()[:-1], "samples")
    assert legend_of(figure) == ["SFLV1", "HO-SFL", "FROZEN (2 seeds)"]


@pytest.mark.parametrize("num_rows", [2, 5])
def test_long_names_stay_within_the_figure(num_rows: int) -> None:
    names = [f"row {i}, with auxiliary.kind=blocks, num_blocks=1 and more of it" for i in range(10)]
    runs = [
        make_run(method, 0, learning_curve(0.5, 99), label=f"{method}: {name}")
        for method in ("ho-sfl", "sflv1")
        for name in names[:num_rows]
    ]
    figure = accuracy_figure(runs, "samples")
    figure.canvas.draw()
    legends = figure.legends or [axes.get_legend() for axes in figure.axes]
    assert len(legends) == (1 if num_rows == 2 else 2)
    for legend in legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    texts = [text.get_text().replace("\n", " ") for leg in legends for text in leg.get_texts()]
    assert {run.result.label for run in runs} <= set(texts)  # nothing is cut off


def test_one_seed_has_no_band() -> None:
    runs = [run for run in comparison() if run.result.root_seed == 0]
    axes = axes_of(accuracy_figure(runs, "samples"))
    assert len(axes.collections) == 0
    assert axes.get_title(loc="left") == "digits: one seed"


def test_methods_are_distinguishable_without_colour() -> None:
    looks = [line_style(position) for position in range(45)]
    assert len({(look["marker"], look["linestyle"]) for look in looks}) == 45
    runs = [make_run(f"m{i:02}", 0, learning_curve(0.9, 1000 + i)) for i in range(12)]
    runs.append(make_run("frozen", 0, learning_curve(0.5, 500)))
    lines = axes_of(accuracy_figure(runs, "samples")).get_lines()
    assert [line.get_marker() for line in lines[:12]] == [look["marker"] for look in looks[:12]]
    assert to_hex(lines[-1].get_color()) == "#707070"


def test_many_rows_are_parted_by_what_clients_compute() -> None:
    zeroth = ["ho-sfl", "heron-sfl", "mu-splitfed", "zo-sfl", "hosl"]
    first = ["sflv1", "sflv2", "cse-fsl", "ho-fl", "fedavg"]
    methods = [name for pair in zip(zeroth, first, strict=True) for name in pair] + ["frozen"]
    runs = [make_run(m, 0, learning_curve(0.5 + 0.02 * i, 99)) for i, m in enumerate(methods)]
    trained = make_run("cse-fsl", 0, learning_curve(0.9, 99), label="FROZEN TOO")
    trained.result.config["options"] = {"frozen_client": True}
    figure = accuracy_figure([*runs, trained], "bytes")
    forward_only, backpropagating = figure.axes
    shown = [[line.get_label() for line in axes.get_lines()] for axes in figure.axes]
    controls = ["FROZEN", "FROZEN TOO"]
    assert shown[0] == [*(name.upper() for name in zeroth), "SFLV1", *controls]
    assert shown[1] == [*(name.upper() for name in first), *controls]
    assert forward_only.get_xlim() == backpropagating.get_xlim()
    assert forward_only.get_ylim() == backpropagating.get_ylim()
    for axes in figure.axes:
        lines = axes.get_lines()
        assert len({line.get_marker() for line in lines}) == len(lines)
    few = [run for run in runs if run.result.method in (*zeroth, "sflv1", "frozen")]
    assert len(accuracy_figure(few, "bytes").axes) == 1
    assert len(accuracy_figure([r for r in runs if r.result.method in first], "bytes").axes) == 1


def test_plot_accuracy_writes_four_files_and_the_same_bytes_twice(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    paths = plot_accuracy(comparison(), tmp_path / "a")
    assert sorted(path.name for path in paths) == [
        "accuracy_vs_bytes.png",
        "accuracy_vs_bytes.svg",
        "accuracy_vs_samples.png",
        "accuracy_vs_samples.svg",
    ]
    assert sorted((tmp_path / "a").iterdir()) == sorted(paths)
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert 1000 <= image.width <= 1100  # one column, 3.5 inches at 300 dpi
    again = plot_accuracy(comparison(), tmp_path / "b")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert dict(mpl.rcParams) == before
    assert Gcf.get_all_fig_managers() == []  # pyplot has not heard of these figures


def test_an_unwritable_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        plot_accuracy(comparison(), tmp_path / "file")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        plot_partition({"label_counts": [[1]]}, tmp_path / "file" / "partition.png")


# --- partition ----------------------------------------------------------------------------------


def test_label_matrix_accepts_lists_and_mappings() -> None:
    counts, names = label_matrix({"label_counts": [[1, 2], [0, 3], [4, 0]]})
    np.testing.assert_array_equal(counts, [[1, 0, 4], [2, 3, 0]])
    assert names == ["0", "1"]
    counts, names = label_matrix({"label_counts": [{"10": 1, "9": 2}, {"2": 5}]})
    assert names == ["2", "9", "10"]
    np.testing.assert_array_equal(counts, [[0, 5], [2, 0], [1, 0]])
    _, names = label_matrix({"label_counts": [[1, 2]], "label_names": ["negative", "positive"]})
    assert names == ["negative", "positive"]


@pytest.mark.parametrize("counts", [None, [], [[]], [[1, 2], [1]]])
def test_missing_or_ragged_counts_are_refused(counts: Any) -> None:
    with pytest.raises(UserError, match="label_counts must hold"):
        partition_figure({"label_counts": counts})


def test_partition_figure_shows_shares_sizes_and_counts() -> None:
    figure = partition_figure({"label_counts": [[1, 3], [0, 0], [5, 5]]})
    bars, matrix = figure.axes[0], figure.axes[1]
    assert [bar.get_height() for bar in bars.patches] == [4, 0, 10]  # type: ignore[attr-defined]
    assert bars.get_title(loc="left") == "3 clients, 2 labels, 14 samples"
    np.testing.assert_allclose(np.asarray(matrix.images[0].get_array()), [[25, 0, 50], [75, 0, 50]])
    assert [text.get_text() for text in matrix.texts] == ["1", "0", "5", "3", "0", "5"]
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("Client id", "Label")


@pytest.mark.parametrize(("clients", "labels"), [(5, 10), (40, 100), (500, 10), (1, 1)])
def test_partition_figures_stay_readable(clients: int, labels: int) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (clients, labels))
    figure = partition_figure({"label_counts": counts.tolist()})
    bars, matrix = figure.axes[0], figure.axes[1]
    assert len(matrix.get_yticks()) <= 20
    assert len(matrix.texts) == (clients * labels if clients <= 10 else 0)
    assert bars.get_xlim() == matrix.get_xlim() == (-0.5, clients - 0.5)
    assert bars.get_ylim()[0] == 0
    assert bars.get_ylim()[1] >= counts.sum(axis=1).max()
    assert figure.get_size_inches()[0] == (3.5 if clients <= 30 else 7.16)


def test_plot_partition_writes_the_format_of_the_suffix(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (500, 10)).tolist()
    path = tmp_path / "new" / "partition.png"
    assert plot_partition({"label_counts": counts}, path) == path
    with Image.open(path) as image:
        assert image.width == pytest.approx(7.16 * 300, abs=2)
    assert b"<svg" in plot_partition({"label_counts": [[1, 2]]}, tmp_path / "p.svg").read_bytes()
    with pytest.raises(UserError, match=r"use a name ending in \.png, \.svg or \.pdf"):
        plot_partition({"label_counts": [[1, 2]]}, tmp_path / "partition.bmp")
