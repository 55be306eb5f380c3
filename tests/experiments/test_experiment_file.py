"""Values are put into an experiment file; everything else stays as it is, to the letter."""

import tomllib

import pytest

from leansplit.errors import RunFailedError
from leansplit.experiments import experiment_file
from leansplit.experiments.experiment import load_experiment
from leansplit.experiments.experiment_file import copy_with_overrides, write_settings

BEFORE = """\
# What this is.
title = "x"  # short
seeds = [0]

[shared]
clients = 4 # four

# zeroth order
[[methods]]
method = "ho-sfl"
client.name = "sgd"
probe.num_perturbations = 10
client.lr = 0.03  # a rate

[methods.tuning]
server.lr = [0.1, 0.2]

# Not tuned yet.
[[methods]]
method = "sflv1"

# inline
[[methods]]
method = "fedavg"
client = { lr = 0.3 }

[[methods]]
method = "frozen"
label = "Control"
[methods.server]
momentum = 0.9
# the end
"""
AFTER = """\
# What this is.
title = "x"  # short
seeds = [0]
learning_rates = "Chosen."

[shared]
clients = 4 # four

# zeroth order
[[methods]]
method = "ho-sfl"
client.name = "adamw"
probe.num_perturbations = 10
client.lr = 0.01  # a rate
server.lr = 0.5

[methods.tuning]
server.lr = [0.1, 0.2]

# Not tuned yet.
[[methods]]
method = "sflv1"
client.lr = 1.0
server.lr = 2.0

# inline
[[methods]]
method = "fedavg"
client = { lr = 0.7 }

[[methods]]
method = "frozen"
label = "Control"
[methods.server]
momentum = 0.9
lr = 0.4
# the end
"""
CHOSEN = {
    "HO-SFL": {"client.name": "adamw", "client.lr": 0.01, "server.lr": 0.5},
    "SFLV1": {"client.lr": 1.0, "server.lr": 2.0},
    "FedAvg": {"client.lr": 0.7},
    "Control": {"server.lr": 0.4},
    "Frozen client": {"server.lr": 9.0},  # no row is labelled so
}


def test_only_the_values_change(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text(BEFORE)
    write_settings(file, CHOSEN, "Chosen.")
    assert file.read_text() == AFTER
    write_settings(file, CHOSEN, "Chosen.")
    assert file.read_text() == AFTER
    assert [path.name for path in tmp_path.iterdir()] == ["e.toml"]


def test_a_note_that_is_there_is_replaced(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text('learning_rates = "old" # why\n' + BEFORE)
    write_settings(file, {}, 'With "quotes".')
    note, _, rest = file.read_text().partition(" # why\n")
    assert tomllib.loads(note) == {"learning_rates": 'With "quotes".'}
    assert rest == BEFORE


def test_a_note_of_several_lines_stays_so(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text(BEFORE)
    note = 'Chosen:\n- SFLV1: "a" \\ b\n- FedAvg: c\nThe rest: no.'
    write_settings(file, {}, note)
    assert tomllib.loads(file.read_text())["learning_rates"] == note
    assert "\n- FedAvg: c\n" in file.read_text()


def test_a_file_is_left_alone_rather_than_damaged(tmp_path, monkeypatch):
    file = tmp_path / "e.toml"
    file.write_text(BEFORE)
    monkeypatch.setattr(experiment_file, "_changed", lambda *_: BEFORE)
    with pytest.raises(RunFailedError, match="without changing more"):
        write_settings(file, CHOSEN, "Chosen.")
    assert file.read_text() == BEFORE


def test_a_copy_says_what_the_command_line_changed_and_runs_the_same(tmp_path):
    source, copied = tmp_path / "a.toml", tmp_path / "b.toml"
    source.write_text(
        '# kept\ntitle = "T"\n[shared]\ntask = "digits"\nsamples = 100\n'
        '[[methods]]\nmethod = "frozen"\nsamples = 200\n'
    )
    overrides = {"samples": 640, "server.lr": 0.5}
    first = load_experiment(source, overrides=overrides)
    assert first.full_title == "T; with samples=640, server.lr=0.5"
    copy_with_overrides(source, copied, first.overrides)
    again = load_experiment(copied)
    assert (again.full_title, again.overrides) == (first.full_title, overrides)
    assert [run.config for run in again.runs] == [run.config for run in first.runs]
    assert again.runs[0].config.samples == 640
    on_top = load_experiment(copied, overrides={"samples": 50})
    assert on_top.overrides == {"samples": 50, "server.lr": 0.5}
    copy_with_overrides(copied, copied, on_top.overrides)
    assert load_experiment(copied).runs[0].config.samples == 50
    copy_with_overrides(source, copied, {})
    assert copied.read_text() == source.read_text()
