"""Tuning: neighbours at the edge, settings that lose, results that are there. Runs are faked."""

import contextlib
import json
import math

import pytest

from leansplit.errors import UserError
from leansplit.experiments import tune as tuning_module
from leansplit.experiments.experiment import load_experiment
from leansplit.experiments.resume import Attempt
from leansplit.experiments.tune import settings_to_write, tune
from leansplit.experiments.tuning_report import (
    learning_rate_note,
    tuning_markdown,
    tuning_table,
    write_tuning,
)
from leansplit.server_app.results import Run, RunResult, config_hash, ledger_table, rounds_table

FILE = """
title = "Small"
learning_rates = "Guessed."
seeds = [0, 1]
[shared]
workers = -1
clients = 4
cohort = 2
rounds = 2
target_accuracy = 0.9
task_options.max_train = 40
task_options.max_test = 20
[tuning]
max_settings = 4
max_extensions = 2
finalists = 1
client.lr = [0.01, 0.1]
server.lr = [0.01, 0.1]
run.batch_size = 4
[[methods]]
method = "sflv1"
client.lr = 0.1
[[methods]]
method = "frozen"
"""


@pytest.fixture
def experiment(tmp_path):
    def load(text=FILE, **options):
        file = tmp_path / "small.toml"
        file.write_text(text)
        return load_experiment(file, **options)

    return load


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Tune with runs whose accuracy is a function of their configuration."""
    waves = []  # methods of the runs that may go side by side

    def run(experiment, accuracy, interrupt_after=math.inf, jobs=1):
        seen = []

        def fake(planned_runs, out_dir, *, jobs, **_):
            waves.append([planned.config.method for planned in planned_runs])
            for position, planned in enumerate(planned_runs):
                attempt = one(planned)
                yield position, attempt
                if attempt.status == "interrupted":
                    return

        def one(planned):
            seen.append(planned)
            if len(seen) > interrupt_after:
                return Attempt(None, "interrupted")
            reached = accuracy(planned.config)
            if reached is None:
                return Attempt(None, "failed", "non-finite loss")
            config = json.loads(json.dumps(planned.config.to_dict()))
            result = RunResult(
                method=planned.config.method,
                label=planned.name,
                task="digits",
                status="completed",
                config=config,
                config_hash=config_hash(config),
                root_seed=planned.config.seed,
                started_at="2026-01-01T00:00:00+00:00",
                final_accuracy=reached,
                final_loss=1 - reached,
            )
            return Attempt(
                Run(result=result, rounds=rounds_table([]), ledger=ledger_table([])), "completed"
            )

        monkeypatch.setattr(tuning_module, "attempt_all", fake)
        lines = []
        result = tune(
            experiment,
            tmp_path / "out",
            jobs=jobs,
            show_progress=lambda title: contextlib.nullcontext(lambda progress: None),
            say=lines.append,
        )
        return result, seen, lines

    run.waves = waves
    return run


def peak(client, server):
    """An accuracy with one best pair of rates."""

    def accuracy(config):
        distance = abs(math.log10(config.server.lr / server))
        if config.method != "frozen":
            distance += abs(math.log10(config.client.lr / client))
        return 0.9 * math.exp(-distance / 4)

    return accuracy


def test_runs_are_on_validation_data_another_seed_and_without_a_target(experiment, tuned):
    _, seen, _ = tuned(experiment(), peak(0.1, 0.1))
    assert {p.config.evaluate_on for p in seen} == {"validation"}
    assert {p.config.seed for p in seen} == {100}
    assert {p.config.target_accuracy for p in seen} == {0.0}
    assert {p.config.batch_size for p in seen} == {4}  # tuning.run
    assert len({p.folder for p in seen}) == len(seen)
    assert seen[0].folder == "sflv1/client.lr-0.01-server.lr-0.01"


def test_the_best_in_the_inside_is_not_extended(experiment, tuned):
    text = FILE.replace("max_settings = 4", "max_settings = 9").replace("0.01, 0.1]", "0.01, 1.0]")
    result, seen, _ = tuned(experiment(text), peak(0.1, 0.1))
    assert [len(row.trials) for row in result.rows] == [9, 9]
    assert result.rows[0].best.settings == {"client.lr": 0.1, "server.lr": 0.1}
    assert result.warnings == [] and len(seen) == 18


def test_an_edge_is_extended_by_the_missing_neighbours_until_it_is_none(experiment, tuned):
    result, _, _ = tuned(experiment(), peak(1.0, 0.1))
    sfl = result.rows[0]
    extensions = {
        number: [t.settings for t in sfl.trials.values() if t.extension == number]
        for number in (1, 2)
    }
    # The best corner (0.1, 0.1) lacks one neighbour above on each rate.
    assert extensions[1] == [
        {"client.lr": 1.0, "server.lr": 0.1},
        {"client.lr": 0.1, "server.lr": 1.0},
    ]
    # Then (1.0, 0.1) is best and lacks three.
    assert extensions[2] == [
        {"client.lr": 10.0, "server.lr": 0.1},
        {"client.lr": 1.0, "server.lr": 0.01},
        {"client.lr": 1.0, "server.lr": 1.0},
    ]
    assert sfl.best.settings == {"client.lr": 1.0, "server.lr": 0.1}
    assert sfl.num_extensions == 2 and result.warnings == []


def test_an_edge_that_remains_is_a_warning(experiment, tuned):
    result, _, _ = tuned(experiment(), peak(1e4, 0.1))
    assert result.rows[0].num_extensions == 2
    assert result.rows[0].best.settings["client.lr"] == 10
    (warning,) = result.warnings
    assert warning.startswith("SFLV1: the best setting lies at the edge after 2 extensions")
    assert "client.lr=100" in warning


def test_every_method_has_the_same_right_to_extensions(experiment, tuned):
    result, _, _ = tuned(experiment(), peak(1e9, 1e9))
    assert [row.num_extensions for row in result.rows] == [2, 2]
    # A step beyond the end is that of the list as written, though frozen's own grid is finer.
    assert result.rows[1].best.settings == {"server.lr": 10.0}


def test_no_extension_where_none_is_allowed(experiment, tuned):
    text = FILE.replace("max_extensions = 2", "max_extensions = 0")
    result, seen, _ = tuned(experiment(text), peak(1e9, 1e9))
    assert len(seen) == 8 and len(result.warnings) == 2
    assert "after 0 extensions" in result.warnings[0]


def test_settings_that_fail_have_lost_and_are_named(experiment, tuned):
    def accuracy(config):
        return None if config.server.lr > 0.05 else peak(0.01, 0.01)(config)

    result, _, lines = tuned(experiment(), accuracy)
    assert result.rows[0].best.settings["server.lr"] <= 0.05
    failed = [t for t in result.rows[0].trials.values() if t.score is None]
    assert len(failed) == 2
    named = [w for w in result.warnings if "failed, and so lost: non-finite loss" in w]
    assert len(named) == sum(t.score is None for r in result.rows for t in r.trials.values())
    assert any("lost, it FAILED: non-finite loss" in line for line in lines)
    assert "failed: non-finite loss" in tuning_markdown(result, "Small")


def test_a_method_without_any_setting_that_works_is_not_chosen(experiment, tuned):
    def accuracy(config):
        return None if config.method == "frozen" else 0.5

    result, _, _ = tuned(experiment(), accuracy)
    assert list(result.chosen) == ["SFLV1"]
    assert "Frozen client: no setting worked." in result.warnings
    note = learning_rate_note(result, "2026-01-02", before="Guessed.", overrides={})
    assert note.startswith("For SFLV1 the best of 4") and note.endswith("For the others: Guessed.")


def test_equal_accuracies_are_told_apart_by_their_order(experiment, tuned):
    result, _, _ = tuned(experiment(), lambda config: 0.5)
    assert result.rows[0].best.settings == {"client.lr": 0.01, "server.lr": 0.01}


def test_an_interruption_keeps_what_there_is(experiment, tuned, tmp_path):
    result, _, _ = tuned(experiment(), peak(0.1, 0.1), interrupt_after=3)
    assert result.is_interrupted and len(result.rows[0].trials) == 3
    assert "SFLV1: interrupted after 3 settings." in result.warnings
    assert "Frozen client: not tuned: interrupted." in result.warnings
    write_tuning(tmp_path / "out", result, "Small")


def test_what_is_left_behind(experiment, tuned, tmp_path):
    planned = experiment()
    result, _, _ = tuned(planned, peak(0.1, 0.1))
    table = tuning_table(result)
    assert list(table.columns[:4]) == ["label", "method", "client.lr", "server.lr"]
    assert table["is_best"].sum() == 2 and len(table) == sum(len(r.trials) for r in result.rows)
    text = tuning_markdown(result, "Small")
    assert "| **0.1** | **0.1** | **90.0** | **0.100** | **–** | best |" in text
    assert "extension 1" in text and "Every method gets 4 settings on seed 100" in text
    assert settings_to_write(planned, result) == {
        "SFLV1": {"server.lr": 0.1},  # the file has client.lr; the server's was the default
        "Frozen client": {"server.lr": 0.1},
    }
    note = learning_rate_note(result, "2026-01-02", before=None, overrides={"rounds": 3})
    assert note.startswith("For every method the best of 4 settings (up to 6")
    first, *grids = note.splitlines()
    assert first.endswith("on 2026-01-02, with batch_size=4 rounds=3:")
    assert grids[0].startswith("- SFLV1: 4 settings: client.lr 0.01")


def test_a_seed_that_is_compared_is_refused(experiment, tuned):
    text = FILE.replace("[tuning]", "[tuning]\nseed = 1")
    with pytest.raises(UserError, match="the comparison uses seed 1"):
        tuned(experiment(text), peak(0.1, 0.1))


def test_rows_may_be_chosen(experiment, tuned):
    result, _, _ = tuned(experiment(methods=["frozen"]), peak(0.1, 0.1))
    assert [row.row.method for row in result.rows] == ["frozen"]


FINALS = FILE.replace("finalists = 1", "finalists = 2\nfinalist_seeds = [7, 8]")


def lucky(config):
    """A rate that is best on the grid's seed alone, and one that is best on the whole."""
    if config.server.lr == 0.1:
        return 0.9 if config.seed == 100 else 0.5
    return 0.8


def test_finalists_run_on_further_seeds_and_their_mean_decides(experiment, tuned):
    result, seen, lines = tuned(
        experiment(FINALS.replace("max_extensions = 2", "max_extensions = 0")), lucky
    )
    frozen = result.rows[1]
    assert [p.config.seed for p in seen if p.config.method == "frozen"] == [100] * 4 + [7, 8, 7, 8]
    assert all(p.config.evaluate_on == "validation" for p in seen)
    assert frozen.best.settings["server.lr"] != 0.1
    assert frozen.best.final_score[0] == pytest.approx(0.8)
    loser = next(t for t in frozen.trials.values() if t.settings["server.lr"] == 0.1)
    assert loser.final_score[0] == pytest.approx((0.9 + 0.5 + 0.5) / 3)
    assert sum(bool(t.reruns) for t in frozen.trials.values()) == 2
    text = tuning_markdown(result, "Small")
    assert "The 2 best of every method then ran again on seeds 7, 8" in text
    assert "| **80.0** | best |" in text
    note = learning_rate_note(result, "2026-01-01", before=None, overrides={})
    assert "seeds 100, 7, 8, not compared" in note
    assert any("[final 1/4]" in line and "seed 7" in line for line in lines)
    assert len({planned.folder for planned in seen}) == len(seen)


def test_side_by_side_no_row_waits_for_the_others_extensions(experiment, tuned):
    text = FILE.replace("finalists = 1", "finalists = 2\nfinalist_seeds = [101, 102]")
    alone, seen_alone, _ = tuned(experiment(text), peak(1.0, 0.001))
    one_by_one = [*tuned.waves]
    tuned.waves.clear()
    together, seen, lines = tuned(experiment(text), peak(1.0, 0.001), jobs=2)
    assert all(len(set(wave)) == 1 for wave in one_by_one)
    assert [set(wave) for wave in tuned.waves] == [{"sflv1", "frozen"}] * 4  # grid, 2 more, finals
    assert together.chosen == alone.chosen
    assert [row.trials.keys() for row in together.rows] == [row.trials.keys() for row in alone.rows]
    assert {p.folder for p in seen} == {p.folder for p in seen_alone}
    assert "SFLV1: 4 settings" in lines[0] and "Frozen client: 4 settings" in lines[1]


def test_a_finalist_that_fails_on_a_seed_has_lost(experiment, tuned):
    def accuracy(config):
        return None if config.seed == 8 and config.server.lr == 0.1 else lucky(config) - 0.3

    result, _, _ = tuned(experiment(FINALS), accuracy)
    frozen = result.rows[1]
    loser = next(t for t in frozen.trials.values() if t.settings["server.lr"] == 0.1)
    assert loser.reruns and loser.final_score is None
    assert frozen.best is not loser


def test_finalists_seeds_may_not_be_compared(experiment, tuned):
    with pytest.raises(UserError, match="uses seed 1:"):
        tuned(experiment(FINALS.replace("[7, 8]", "[1, 8]")), lucky)


@pytest.mark.parametrize("seeds", ["[100, 7]", "[7, 7]", "7", "[1.5]"])
def test_finalist_seeds_are_whole_numbers_each_once(experiment, seeds):
    with pytest.raises(UserError, match="finalist_seeds must be"):
        experiment(FINALS.replace("[7, 8]", seeds))


def test_ctrl_c_in_the_finals_ends_tuning(experiment, tuned):
    result, seen, _ = tuned(experiment(FINALS), lucky, interrupt_after=7)
    assert result.is_interrupted and len(seen) == 8
