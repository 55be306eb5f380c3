"""What a run leaves behind: round trips, atomic replacement, errors that name the file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leansplit.errors import UserError
from leansplit.server_app.config import ADDED, run_config
from leansplit.server_app.results import (
    LEDGER_COLUMNS,
    ROUNDS_COLUMNS,
    RunResult,
    check_writable,
    config_hash,
    find_runs,
    ledger_table,
    read_run,
    results_folder,
    rounds_table,
    to_plain,
    write_files,
    write_run,
)
from leansplit.wire.ledger import Ledger

CONFIG = {"method": "ho-sfl", "optimizer": {"learning_rate": 0.1}, "alpha": float("inf")}

ROUNDS = rounds_table(
    [
        {
            "round": 0,
            "samples_seen": 0,
            "accuracy": 0.1,
            "loss": 2.3,
            "train_loss": float("nan"),
            "uplink_bytes": 0,
            "downlink_bytes": 0,
            "num_exchanges": 0,
            "wall_time_s": 0.0,
        },
        {
            "round": 5,
            "samples_seen": 160,
            "accuracy": 0.5,
            "loss": 1.2,
            "train_loss": 1.3,
            "uplink_bytes": 700,
            "downlink_bytes": 300,
            "num_exchanges": 10,
            "wall_time_s": 1.5,
        },
    ]
)
LEDGER_SOURCE = Ledger()
LEDGER_SOURCE.record(1, 0, "uplink", {"smashed_data": 400})
LEDGER_SOURCE.record(1, 1, "uplink", {"smashed_data": 290, "scalars": 10})
LEDGER_SOURCE.record(1, 0, "downlink", {"smashed_gradient": 300})
LEDGER = ledger_table(LEDGER_SOURCE)


def test_a_ledger_and_its_entries_make_the_same_table():
    pd.testing.assert_frame_equal(ledger_table(list(LEDGER_SOURCE)), LEDGER)
    pd.testing.assert_frame_equal(ledger_table(Ledger()), ledger_table([]))


def make_result(**changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "method": "ho-sfl",
        "label": "HO-SFL",
        "task": "digits",
        "status": "completed",
        "config": CONFIG,
        "config_hash": config_hash(CONFIG),
        "root_seed": 7,
        "versions": {"python": "3.11"},
        "command": ["leansplit", "run"],
        "started_at": "2026-01-02T03:04:05+00:00",
        "wall_time_s": 1.5,
        "rounds_completed": 5,
        "samples_seen": 160,
        "final_accuracy": 0.5,
        "best_accuracy": 0.5,
        "final_loss": 1.2,
        "traffic": LEDGER_SOURCE.by_kind(),
        "uplink_bytes": 700,
        "downlink_bytes": 300,
        "events": {"resyncs": 1},
        "partition": {"sizes": np.array([3, 4]), "label_counts": [[1, 2], [4, 0]]},
    }
    return RunResult(**{**values, **changes})


def test_round_trip(tmp_path: Path) -> None:
    result = make_result()
    write_run(tmp_path / "new" / "run", result, ROUNDS, LEDGER)
    run = read_run(tmp_path / "new" / "run")
    assert run.result == result
    pd.testing.assert_frame_equal(run.rounds, ROUNDS)
    pd.testing.assert_frame_equal(run.ledger, LEDGER)
    assert list(run.rounds.columns) == list(ROUNDS_COLUMNS)
    assert list(run.ledger.columns) == list(LEDGER_COLUMNS)
    assert sorted(path.name for path in run.path.iterdir()) == [  # type: ignore[union-attr]
        "ledger.parquet",
        "result.json",
        "rounds.parquet",
    ]


def test_a_failed_run_without_any_evaluation_round_trips(tmp_path: Path) -> None:
    result = make_result(status="failed", error="client 3: …", final_accuracy=None)
    write_run(tmp_path, result, rounds_table([]), ledger_table([]))
    run = read_run(tmp_path)
    assert run.result == result
    assert len(run.rounds) == len(run.ledger) == 0
    assert run.rounds.dtypes.equals(ROUNDS.dtypes)


def test_non_finite_numbers_make_valid_json_and_come_back(tmp_path: Path) -> None:
    write_run(tmp_path, make_result(final_loss=float("nan")), ROUNDS, LEDGER)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    raw = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert raw["final_loss"] == "nan"
    assert raw["config"]["alpha"] == "inf"
    result = read_run(tmp_path).result
    assert result.final_loss is not None and np.isnan(result.final_loss)
    assert config_hash(result.config) == result.config_hash


def test_numpy_scalars_are_accepted() -> None:
    result = make_result(
        samples_seen=np.int64(3), final_accuracy=np.float32(0.5), final_loss=np.float64(1)
    )
    assert type(result.samples_seen) is int
    assert type(result.final_accuracy) is float


@pytest.mark.parametrize(
    "changes",
    [
        {"final_accuracy": 83.8},  # percent where a fraction is meant
        {"uplink_bytes": -1},
        {"status": "ok"},
        {"unknown": 1},
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        make_result(**changes)


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_result().status = "failed"  # type: ignore[misc]


def test_ledger_table_has_one_row_per_entry() -> None:
    assert LEDGER.to_dict("list") == {
        "round": [1, 1, 1, 1],
        "client_id": [0, 0, 1, 1],
        "direction": ["downlink", "uplink", "uplink", "uplink"],
        "kind": ["smashed_gradient", "smashed_data", "scalars", "smashed_data"],
        "bytes": [300, 400, 10, 290],
    }


def test_wrong_table_columns_are_a_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing \['loss'\], unexpected \['perplexity'\]"):
        write_run(tmp_path, make_result(), ROUNDS.rename(columns={"loss": "perplexity"}), LEDGER)
    assert list(tmp_path.iterdir()) == []


# --- atomic replacement -------------------------------------------------------------------------


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_crash_while_writing_leaves_the_old_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    write_run(tmp_path, make_result(), ROUNDS, LEDGER)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    num_calls = 0

    def fsync_until_the_crash(_: int) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == crash_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync_until_the_crash)
    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path, make_result(status="failed"), ROUNDS.iloc[:1], LEDGER.iloc[:1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_files(tmp_path, {"a": b"new"})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_result_json_is_replaced_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_run(tmp_path, make_result(), ROUNDS, LEDGER)
    assert replaced[-1] == "result.json"


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the output folder .*file.*choose"):
        check_writable(tmp_path / "file" / "run")


def test_a_folder_that_nothing_was_written_to_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "c"
    for error in (UserError("no"), KeyboardInterrupt(), RuntimeError("no")):
        with pytest.raises(type(error)), results_folder(out):
            assert out.is_dir()
            raise error
        assert list(tmp_path.iterdir()) == []

    (tmp_path / "a").mkdir()  # what was there before stays
    with pytest.raises(UserError), results_folder(out):
        raise UserError("no")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    with pytest.raises(UserError), results_folder(out):
        (out.parent / "note").write_text("what somebody else put there stays, too")
        raise UserError("no")
    assert [path.name for path in out.parent.iterdir()] == ["note"]

    with results_folder(out):
        pass
    assert out.is_dir()
    with pytest.raises(UserError), results_folder(out):
        raise UserError("no")
    assert out.is_dir()


def test_a_folder_that_cannot_be_written_leaves_none_above_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), results_folder(tmp_path / "file" / "run"):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- reading what is damaged or foreign ---------------------------------------------------------


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "result.json").unlink(), r"result\.json: No such file"),
        (lambda d: (d / "result.json").write_text("{"), r"result\.json: not valid JSON"),
        (lambda d: (d / "result.json").write_bytes(b"\xff"), r"result\.json: not valid JSON"),
        (lambda d: (d / "result.json").write_text("[1]"), r"result\.json: not a leansplit"),
        (lambda d: (d / "result.json").write_text("{}"), r"result\.json: not a leansplit"),
        (lambda d: edit_json(d / "result.json", schema_version=2), "schema_version is 2"),
        (lambda d: edit_json(d / "result.json", status="fine"), "status: "),
        (lambda d: edit_json(d / "result.json", extra=1), "extra: "),
        (lambda d: (d / "rounds.parquet").unlink(), r"rounds\.parquet: No such file"),
        (lambda d: (d / "ledger.parquet").write_bytes(b"PAR1"), r"ledger\.parquet: "),
        (lambda d: LEDGER.to_parquet(d / "rounds.parquet"), r"rounds\.parquet: .*missing"),
    ],
)
def test_unreadable_runs_name_file_and_reason(tmp_path: Path, damage: Any, message: str) -> None:
    write_run(tmp_path, make_result(), ROUNDS, LEDGER)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path)


def test_find_runs(tmp_path: Path) -> None:
    for name in ("b/seed-1", "a"):
        write_run(tmp_path / name, make_result(), ROUNDS, LEDGER)
    (tmp_path / "empty").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b" / "seed-1"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]
    assert find_runs(tmp_path / "empty") == []
    with pytest.raises(UserError, match=r"no folder .*absent"):
        find_runs(tmp_path / "absent")


# --- config hash --------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def shuffled(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        keys = draw(st.permutations(list(value)))
        return {key: shuffled(value[key], draw) for key in keys}
    if isinstance(value, list):
        return tuple(shuffled(item, draw) for item in value)
    return value


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4), st.data())
def test_config_hash_ignores_key_order_and_survives_json(config: dict[str, Any], data: Any) -> None:
    expected = config_hash(config)
    assert len(expected) == 16 and int(expected, 16) >= 0
    assert config_hash(shuffled(config, data.draw)) == expected
    assert config_hash(json.loads(json.dumps(to_plain(config)))) == expected


@given(st.integers(), st.integers())
def test_config_hash_sees_values(first: int, second: int) -> None:
    same = config_hash({"a": {"b": first}}) == config_hash({"a": {"b": second}})
    assert same == (first == second)


def test_config_hash_golden() -> None:
    # printf '%s' '{"a":[1,2.5,null],"b":"é"}' | sha256sum | cut -c1-16
    assert config_hash({"b": "é", "a": (1, 2.5, None)}) == "41a039b5a690a0e4"


def test_config_hash_refuses_what_has_no_json_form() -> None:
    with pytest.raises(TypeError, match="cannot store set"):
        config_hash({"a": {1, 2}})
    with pytest.raises(TypeError, match="keys are the same"):
        to_plain({1: "a", "1": "b"})
    assert config_hash({"path": Path("a/b")}) == config_hash({"path": "a/b"})


def test_settings_added_later_leave_the_hash_of_older_runs():
    unset = run_config("ho-sfl", {}).to_dict()
    assert not set(ADDED) & unset.keys()
    for key, value in {"faults.drop": 0.1, "robust.rule": "median", "quorum": 0.5}.items():
        config = run_config("ho-sfl", {key: value}).to_dict()
        assert config_hash(config) != config_hash(unset), key
