"""The same number of settings for every method, whatever it has to tune."""

import dataclasses
import math
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.errors import UserError
from leansplit.experiments.experiment import Row
from leansplit.experiments.tune import row_grid
from leansplit.experiments.tuning_config import (
    Tuning,
    has_zeroth_client,
    method_tuning,
    read_tuning,
)
from leansplit.experiments.tuning_grid import Axis, Point
from leansplit.server_app.methods import METHODS, is_used


def grid_of(method, tuning=None, **settings):
    base = {"clients": 4, "cohort": 2}
    row = Row(label=method, method=method, settings=base | settings, tuning=tuning or Tuning())
    return row_grid(row)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [8, 12, 16, 24])
def test_every_method_gets_the_same_number_of_settings(method, number):
    grid = grid_of(method, Tuning(max_settings=number))
    settings = [tuple(sorted(grid.settings(point).items())) for point in grid.points]
    assert len(settings) == len(set(settings)) == number


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_tuned_in_all_rates_it_has_and_in_nothing_else(method):
    grid = grid_of(method)
    rates = {key for key in ("client.lr", "server.lr") if is_used(method, key)}
    optimizers = {"client.name", "client.momentum"} if has_zeroth_client(method) else set()
    for point in grid.points:
        assert set(grid.settings(point)) == rates | optimizers


def test_a_grid_is_as_square_as_its_share_allows():
    axes = {m: [len(a.values) for a in grid_of(m).blocks[0].axes] for m in METHODS}
    assert axes["sflv1"] == [4, 3] and axes["frozen"] == [12] and axes["fedavg"] == [12]
    blocks = grid_of("ho-sfl").blocks
    assert [[len(axis.values) for axis in block.axes] for block in blocks] == [[3, 2], [3, 2]]
    assert [b.fixed["client.name"] for b in blocks] == ["sgd", "adamw"]
    assert [b.fixed["client.momentum"] for b in blocks] == [0.9, 0.0]  # each says all


def test_lists_that_fit_are_used_as_they_are_and_others_keep_their_ends():
    tuning = Tuning(client_lr=(0.1, 0.2, 0.7, 1.0), server_lr=(0.01, 0.5, 1.0))
    client, server = grid_of("sflv1", tuning).blocks[0].axes
    assert client.values == (0.1, 0.2, 0.7, 1.0) and server.values == (0.01, 0.5, 1.0)
    [axis] = grid_of("frozen", tuning).blocks[0].axes
    assert (axis.values[0], axis.values[-1]) == (0.01, 1.0)
    ratios = [b / a for a, b in zip(axis.values, axis.values[1:], strict=False)]
    assert ratios == pytest.approx([100 ** (1 / 11)] * 11, rel=0.02)
    # Beyond its ends a list goes on as it is written, in steps of a factor of 10 at most.
    assert axis.step == pytest.approx(10) and axis.value(12) == 10 and axis.value(-2) == 0.0001
    [far] = grid_of("frozen", Tuning(server_lr=(0.01, 10.0))).blocks[0].axes
    assert far.step == 10 and far.value(12) == 100


def test_a_finer_grid_reaches_as_far_in_one_extension_as_the_list_as_written():
    [axis] = grid_of("frozen", Tuning(server_lr=(0.1, 0.2, 0.4))).blocks[0].axes
    assert axis.step == pytest.approx(2) and len(axis.values) == 12
    assert axis.value(12) == 0.8 and axis.value(-1) == 0.05


def test_a_list_of_one_value_fixes_a_rate():
    grid = grid_of("sflv1", Tuning(server_lr=(0.2,)))
    assert len(grid.points) == 12 and len(grid.blocks[0].axes) == 1
    assert all(grid.settings(point)["server.lr"] == 0.2 for point in grid.points)
    everything = Tuning(server_lr=(0.2,), client_lr=(0.1,))
    assert grid_of("sflv1", everything).points == [Point(0, ())]


def test_an_optimizer_that_a_method_refuses_leaves_its_share_to_the_others(monkeypatch):
    from leansplit.federated import HOSFLConfig

    def refuse_adamw(config):
        if config.client_optimizer.name == "adamw":
            raise UserError("only sgd")

    monkeypatch.setattr(HOSFLConfig, "__post_init__", refuse_adamw)
    grid = grid_of("ho-sfl")
    assert len(grid.points) == 12 and len(grid.blocks) == 1
    only = read_tuning({"zeroth_client": [{"name": "adamw", "lr": [0.1, 0.2]}]})
    with pytest.raises(UserError, match="no zeroth_client optimizer is left: ho-sfl: only sgd"):
        grid_of("ho-sfl", only)


def test_neighbours_are_one_step_on_one_rate():
    grid = grid_of("sflv1")
    corner = Point(0, (0, 2))
    assert grid.neighbours(corner) == [
        Point(0, (-1, 2)),
        Point(0, (1, 2)),
        Point(0, (0, 1)),
        Point(0, (0, 3)),
    ]
    assert [p for p in grid.neighbours(Point(0, (1, 1))) if p not in grid.points] == []


@given(st.floats(1e-4, 1), st.floats(1.5, 100), st.integers(-5, 15))
def test_rates_grow_with_their_index(low, factor, index):
    axis = Axis("client.lr", (low, low * factor), factor)
    assert 0 < axis.value(index) < axis.value(index + 1) < math.inf


@pytest.mark.parametrize(("number", "method"), [(14, "ho-sfl"), (7, "sflv1"), (2, "sflv1")])
def test_numbers_that_make_no_grid_are_refused(number, method):
    with pytest.raises(UserError, match="no grid of client and server rates"):
        grid_of(method, Tuning(max_settings=number))
    with pytest.raises(UserError, match="cannot be shared equally"):
        grid_of("ho-sfl", Tuning(max_settings=9))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sed": 1}, "unknown key 'sed' in tuning; did you mean 'seed'"),
        ({"seed": -1}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"max_settings": 0}, "at least 1"),
        ({"max_extensions": 1.5}, "whole number"),
        ({"client": {"lr": 0.1}}, "client.lr of tuning must be a list of rates"),
        ({"client": {"lr": []}}, "must be a list of rates"),
        ({"client": {"lr": [0.1, -1]}}, "above 0"),
        ({"client": {"lr": [0.1, 0.05]}}, "ascending"),
        ({"server": {"momentum": [0.9]}}, "unknown key 'server.momentum'"),
        ({"zeroth_client": {"name": "sgd"}}, "list of tables"),
        ({"zeroth_client": [{"name": "sgd"}]}, "needs an `lr` list"),
        ({"zeroth_client": [{"name": "adam", "lr": [0.1]}]}, "did you mean 'adamw'"),
        ({"zeroth_client": [{"nam": "sgd", "lr": [0.1]}]}, "did you mean 'name'"),
        ({"run": 3}, "tuning.run must be a table"),
        (3, "tuning must be a table"),
    ],
)
def test_mistakes_in_the_tuning_table(table, message):
    with pytest.raises(UserError, match=message):
        read_tuning(table)


def test_the_tuning_table_is_read():
    tuning = read_tuning(
        {
            "seed": 7,
            "client": {"lr": [1, 2]},
            "zeroth_client": [{"name": "sgd", "momentum": 0.5, "lr": [0.1]}],
            "run": {"samples": 10, "probe": {"num_perturbations": 2}},
        }
    )
    assert tuning.seed == 7 and tuning.client_lr == (1.0, 2.0)
    assert tuning.server_lr == Tuning().server_lr
    assert tuning.zeroth_client[0].keys == {"client.name": "sgd", "client.momentum": 0.5}
    assert tuning.run == {"samples": 10, "probe.num_perturbations": 2}


def test_a_method_may_have_its_own_rates_but_not_more_settings():
    tuning = method_tuning(Tuning(), "sflv1", {"client": {"lr": [1, 3]}})
    assert tuning == dataclasses.replace(Tuning(), client_lr=(1.0, 3.0))
    for table, method, message in (
        ({"max_settings": 99}, "sflv1", "unknown key 'max_settings' in tuning of sflv1"),
        ({"client": {"lr": [1]}}, "frozen", "does not use 'client.lr'"),
        ({"client": {"lr": [1]}}, "ho-sfl", "give its rates in `zeroth_client`"),
        ({"zeroth_client": [{"lr": [1]}]}, "sflv1", "no zeroth-order client"),
    ):
        with pytest.raises(UserError, match=message):
            method_tuning(Tuning(), method, table)


def test_the_page_on_comparing_names_the_defaults_and_its_examples_load(tmp_path):
    from leansplit.experiments.experiment import load_experiment

    page = (Path(__file__).parents[2] / "docs" / "comparing.md").read_text()
    experiment, tuning = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    read = read_tuning(tomllib.loads(tuning)["tuning"])
    assert dataclasses.replace(read, run={}) == Tuning()
    for number, text in enumerate((experiment, tuning)):
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        assert load_experiment(file).rows
