"""When checkpoints are written, what is refused, and how far one goes back."""

import threading
import time

import pytest

from leansplit.clients.app import app
from leansplit.errors import UserError
from leansplit.server_app import checkpoints as module
from leansplit.server_app.checkpoint_files import CheckpointError, find_checkpoints
from leansplit.server_app.checkpoints import Checkpoints, resumable
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.results import config_hash
from leansplit.strategies.ho_sfl import HOSFL
from leansplit.strategies.in_process_grid import InProcessGrid

ROUNDS = 6


def config(method="ho-sfl", **overrides):
    settings = {
        "task_options.max_train": 60,
        "task_options.max_test": 20,
        "clients": 4,
        "cohort": 2,
        "rounds": ROUNDS,
        "evaluate_every": 3,
        "checkpoint_every": 2,
        "replica_storage": "worker",
    }
    return run_config(method, settings | overrides)


@pytest.fixture
def run(tmp_path):
    def start(settings, *, stop_in=None, resume=False, **how):
        stop = threading.Event()

        def watch(progress):
            if progress.round == stop_in:
                stop.set()

        checkpoint = resumable(tmp_path, settings, **how) if resume else None
        return execute(
            settings,
            InProcessGrid(app, settings.clients),
            stop=stop,
            on_progress=watch,
            checkpoints=Checkpoints(tmp_path / "checkpoints", checkpoint),
        )

    return start


def rounds_in(folder):
    return [int(path.name.removeprefix("round-")) for path in find_checkpoints(folder)]


def test_every_n_rounds_keeping_the_last_k(run, tmp_path):
    assert run(config(checkpoint_keep=2)).status == "completed"
    assert rounds_in(tmp_path) == [6, 4]


def test_every_so_many_seconds(run, tmp_path, monkeypatch):
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    assert run(config(checkpoint_every=0, checkpoint_seconds=1)).status == "completed"
    assert rounds_in(tmp_path) == [6, 5]


def test_none_unless_asked_for(run, tmp_path):
    run(config(checkpoint_every=0))
    assert rounds_in(tmp_path) == []


def test_an_interrupted_run_leaves_a_checkpoint_and_goes_on_without_a_trace(run, tmp_path):
    whole = run(config())
    for stop_in in (1, 3, 4):
        stopped = run(config(), stop_in=stop_in)
        assert stopped.status == "interrupted"
        assert rounds_in(tmp_path)[0] == stop_in
        resumed = run(config(), resume=True)
        assert resumed.final_model_checksum == whole.final_model_checksum
        assert [row["round"] for row in resumed.rounds] == [0, 3, 6]
        assert list(resumed.ledger) == list(whole.ledger)
        assert resumed.num_exchanges == whole.num_exchanges


def test_a_run_may_be_interrupted_again_and_again(run):
    whole = run(config())
    run(config(), stop_in=1)
    for stop_in in (2, 3, 5):
        run(config(), stop_in=stop_in, resume=True)
    last = run(config(), resume=True)
    assert last.final_model_checksum == whole.final_model_checksum
    assert last.events["resumes"] == 4
    assert list(last.ledger) == list(whole.ledger)


def test_a_checkpoint_of_the_last_round_only_ends_the_run(run):
    whole = run(config())
    again = run(config(), resume=True)
    assert again.status == "completed"
    assert again.final_model_checksum == whole.final_model_checksum
    assert list(again.ledger) == list(whole.ledger)


def test_another_run_s_checkpoint_is_refused_with_what_differs(run, tmp_path):
    run(config())
    with pytest.raises(CheckpointError, match=r"of another run \(.*seed: 0 -> 1"):
        resumable(tmp_path, config(seed=1))
    with pytest.raises(CheckpointError, match="method: ho-sfl -> frozen"):
        resumable(tmp_path, config("frozen"))


def test_where_it_runs_and_when_it_is_checkpointed_may_change(run, tmp_path):
    run(config())
    other = config(workers=3, checkpoint_every=1, checkpoint_keep=5, exchange_timeout_s=9)
    assert resumable(tmp_path, other).round == 6


def test_keys_of_checkpoints_make_no_other_run():
    assert config_hash(config().to_dict()) == config_hash(config(checkpoint_every=5).to_dict())


def test_a_damaged_one_is_refused_or_passed_over(run, tmp_path):
    whole = run(config())
    newest, older = find_checkpoints(tmp_path)
    (newest / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"0 bytes.*--resume-previous"):
        resumable(tmp_path, config())
    said = []
    assert resumable(tmp_path, config(), or_previous=True, say=said.append).round == 4
    assert len(said) == 1 and "state.safetensors" in said[0]
    resumed = run(config(checkpoint_every=1), resume=True, or_previous=True)
    assert resumed.final_model_checksum == whole.final_model_checksum
    assert rounds_in(tmp_path) == [6, 5]
    assert resumable(tmp_path, config()).round == 6  # the damaged one is gone
    (older / "manifest.json").parent.mkdir(exist_ok=True)
    for path in find_checkpoints(tmp_path):
        (path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a leansplit checkpoint"):
        resumable(tmp_path, config(), or_previous=True, say=said.append)


def test_no_checkpoint_is_a_reason(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        resumable(tmp_path, config())


def test_a_new_run_keeps_none_of_an_earlier_one(run, tmp_path):
    run(config())
    run(config(rounds=5, checkpoint_every=3))
    assert rounds_in(tmp_path) == [3]


def test_clients_with_other_data_are_refused(run, monkeypatch):
    run(config())
    monkeypatch.setattr(module, "_sizes", lambda federation: [[0, 1]])
    with pytest.raises(UserError, match="other samples than before"):
        run(config(), resume=True)


def test_a_full_disk_ends_no_run(run, monkeypatch):
    def full(folder, checkpoint):
        raise UserError("cannot write a checkpoint: no space left")

    monkeypatch.setattr(module, "write_checkpoint", full)
    outcome = run(config())
    assert outcome.status == "completed"
    assert outcome.events == {"failed_checkpoints": 3}


def test_a_client_that_deposits_nothing_costs_its_memory_and_is_counted(tmp_path):
    """Its moments start anew: not the same bits, and nobody is told otherwise."""
    settings = config("sflv2", **{"client.momentum": 0.9, "client.lifetime": "run"})

    def silent(message, partition_id):
        is_deposit = message.metadata.message_type == "train.deposit"
        return "asleep" if is_deposit and partition_id == 1 else None

    folder = tmp_path / "checkpoints"
    execute(settings, InProcessGrid(app, 4, fault=silent), checkpoints=Checkpoints(folder))
    start = resumable(tmp_path, settings)
    resumed = execute(settings, InProcessGrid(app, 4), checkpoints=Checkpoints(folder, start))
    assert resumed.status == "completed"
    assert resumed.events["lost_client_memories"] == 1


class Counting(HOSFL):
    """A method whose author adds an attribute and forgets that checkpoints need it."""

    def configure_train(self, server_round, arrays, config, grid):
        self.rounds_opened = server_round
        return super().configure_train(server_round, arrays, config, grid)


class Declared(Counting):
    not_state = ("rounds_opened",)


def test_a_method_that_forgets_an_attribute_is_told(run, monkeypatch):
    import dataclasses

    from leansplit.server_app.methods import METHODS, spec

    for strategy in (Counting, Declared):
        mine = dataclasses.replace(METHODS["ho-sfl"], strategy=strategy)
        monkeypatch.setitem(spec._methods, "ho-sfl", mine)
        if strategy is Declared:
            assert run(config()).status == "completed"
        else:
            with pytest.raises(UserError, match=r"Counting .* leaves out rounds_opened"):
                run(config())
    assert run(config(checkpoint_every=0)).status == "completed"


def test_time_goes_on_where_it_stood(run):
    first = run(config(), stop_in=2)
    time.sleep(0.05)
    second = run(config(), resume=True)
    assert second.wall_time_s > first.rounds[0]["wall_time_s"]
    assert [r["wall_time_s"] for r in second.rounds] == sorted(
        r["wall_time_s"] for r in second.rounds
    )


def test_checkpoints_need_a_folder():
    with pytest.raises(UserError, match="checkpoints need a folder"):
        execute(config(), InProcessGrid(app, 4))
