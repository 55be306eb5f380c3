"""Replicas that are lost, tampered with or lagging are mended, counted and never trusted."""

import dataclasses
import random
from collections import Counter

import pytest
from flwr.app import Message

from leansplit.clients import workload
from leansplit.clients.app import app
from leansplit.clients.memory import ClientMemory
from leansplit.federated import sample_cohort
from leansplit.server_app.checkpoint_files import checkpoint_path, read_checkpoint
from leansplit.server_app.checkpoints import Checkpoints
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.methods import is_used
from leansplit.server_app.outputs import run_result
from leansplit.strategies.flower_records import pack, unpack
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.wire import ProbedSmashedDataReply, SmashedDataReply, decode, encode

ROUNDS = 12


def config(method="ho-sfl", **overrides):
    settings = {
        "task_options.max_train": 240,
        "task_options.max_test": 60,
        "clients": 5,
        "cohort": 3,
        "rounds": ROUNDS,
        "evaluate_every": ROUNDS,
        "probe.num_perturbations": 2,
        "client.name": "adamw",
        "client.lr": 0.003,
        "replica_storage": "context",
    }
    used = {key: value for key, value in settings.items() if is_used(method, key)}
    return run_config(method, used | overrides)


class Meddling:
    """Changes things behind the server's back when a certain message passes."""

    def __init__(self, action, round, client_id, meddle):
        self.grid = None
        self._when = (f"train.{action}", str(round))
        self._client_id = client_id
        self._meddle = meddle
        self.times = 0

    def __call__(self, message, partition_id):
        here = (message.metadata.message_type, message.metadata.group_id)
        if here == self._when and partition_id == self._client_id and not self.times:
            self.times += 1
            self._meddle(self.grid.context_of(partition_id))


def run(meddling=None, **overrides):
    grid = InProcessGrid(app, 5, fault=meddling)
    if meddling:
        meddling.grid = grid
    outcome = execute(config(**overrides), grid)
    assert outcome.status == "completed", outcome.error
    return outcome


def second_participation(client_id):
    rounds = [t for t in range(1, ROUNDS + 1) if client_id in sample_cohort(0, t, range(5), 3)]
    return rounds[1]


def tamper(context):
    memory = ClientMemory(context, 1)
    tensors = memory.load("replica")
    tensors["parameters.conv1.bias"] += 1e-7
    memory.save("replica", tensors)


def lose_replica(context):
    ClientMemory(context, 1).replace({}, {})


@pytest.mark.parametrize("meddle", [tamper, lose_replica])
@pytest.mark.parametrize("action", ["ho_sfl_forward", "synchronise"])
def test_damaged_replica_is_resynchronised_counted_and_priced(meddle, action):
    clean = run()
    round = ROUNDS + 1 if action == "synchronise" else second_participation(1)
    meddling = Meddling(action, round, 1, meddle)
    mended = run(meddling)
    assert meddling.times == 1
    assert mended.events == {"resyncs": 1}
    assert mended.final_model_checksum == clean.final_model_checksum
    extra = {
        kind: mended.ledger.total_bytes(kind=kind) - clean.ledger.total_bytes(kind=kind)
        for kind in ("weights", "catch_up")
    }
    assert extra["weights"] > 0


def test_restarted_node_is_set_up_again_and_resynchronised():
    meddling = Meddling("ho_sfl_forward", second_participation(1), 1, lambda c: c.state.clear())
    outcome = run(meddling)
    assert outcome.events == {"dropped_clients": 1, "dropped_node": 1, "resyncs": 1}


def test_lagging_worker_is_refilled_without_a_price():
    """A worker process that stands in for up-to-date clients may itself have missed rounds."""
    clean = run(replica_storage="worker")
    kept = {}

    def forget(context):
        [worker] = workload._workers.values()
        worker.shared_replica = None

    def fall_behind(context):
        [worker] = workload._workers.values()
        worker.shared_replica = kept["old"]

    class Watching(Meddling):
        def __call__(self, message, partition_id):
            [worker] = workload._workers.values() or [None]
            if message.metadata.group_id == "2" and worker.shared_replica is not None:
                from leansplit.federated import Replica

                replica = worker.shared_replica
                kept.setdefault(
                    "old",
                    Replica.from_state(
                        replica.state(),
                        replica._config,
                        replica._zeroth_order,
                        version=replica.version,
                    ),
                )
            super().__call__(message, partition_id)

    for meddle in (forget, fall_behind):
        for action in ("ho_sfl_forward", "ho_sfl_probe"):
            round = second_participation(1) + 3
            while 1 not in sample_cohort(0, round, range(5), 3):
                round += 1
            kept.clear()
            outcome = run(Watching(action, round, 1, meddle), replica_storage="worker")
            assert set(outcome.events) == {"worker_refills"}
            assert outcome.final_model_checksum == clean.final_model_checksum
            assert list(outcome.ledger) == list(clean.ledger)
            assert outcome.num_exchanges == clean.num_exchanges


def test_probe_that_fails_leaves_the_client_behind_not_wrong():
    """A client dropped between the two exchanges never saw the seeds and gets them later."""

    def fault(message, partition_id):
        is_probe = message.metadata.message_type == "train.ho_sfl_probe"
        return "tunnel" if is_probe and partition_id in (1, 3) else None

    grid = InProcessGrid(app, 5, fault=fault)
    outcome = execute(config(), grid)
    assert outcome.status == "completed"
    assert outcome.events["dropped_clients"] > 0
    assert "resyncs" not in outcome.events and "unsynchronised_clients" not in outcome.events


@pytest.mark.parametrize("method", ["ho-sfl", "hosl", "decomfl"])
@pytest.mark.parametrize("storage", ["context", "worker"])
def test_lost_answers_cost_no_resync(method, storage):
    """The client did its work and remembers it; the server cannot know."""
    draw, num_lost = random.Random(0), 0

    def losing(message, context):
        nonlocal num_lost
        reply = app(message, context)
        is_training = message.metadata.message_type.startswith("train")
        if is_training and message.metadata.group_id != str(ROUNDS + 1) and draw.random() < 0.2:
            num_lost += 1
            own = int(context.node_config["partition-id"])
            return Message(pack({}, {own: "lost"}), reply_to=message)
        return reply

    outcome = execute(config(method, replica_storage=storage), InProcessGrid(losing, 5))
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {"dropped_clients": num_lost, "dropped_error": num_lost} and num_lost


def test_random_attendance_with_faults_keeps_replicas_exact():
    for seed in range(6):
        draw = random.Random(seed)

        def fault(message, partition_id, draw=draw):
            is_training = message.metadata.message_type.startswith("train.ho_sfl_")
            is_sync = message.metadata.message_type.endswith("sync")
            return "chance" if is_training and not is_sync and draw.random() < 0.15 else None

        outcome = execute(config(seed=seed), InProcessGrid(app, 5, fault=fault))
        assert outcome.status == "completed"
        assert "resyncs" not in outcome.events  # nobody was ever wrong, only absent
        assert "unsynchronised_clients" not in outcome.events


@pytest.mark.parametrize(("wrong_answers", "uploads"), [(1, 2), (9, 4)])
@pytest.mark.parametrize("method", ["ho-sfl", "frozen", "hosl"])
def test_every_upload_of_a_client_that_is_asked_again_is_in_what_privacy_was_spent(
    method, wrong_answers, uploads, tmp_path
):
    """Each time the same batch under fresh noise, so epsilon must count it; here and resumed."""
    seen, lied = Counter(), Counter()

    def lying(message, context):
        reply = app(message, context)
        [(m, blob)] = unpack(reply.content).items()
        record, round = decode(blob), message.metadata.group_id
        if not isinstance(record, SmashedDataReply | ProbedSmashedDataReply):
            return reply
        seen[m, round] += 1
        if m != 1 or lied[round] == wrong_answers:
            return reply
        lied[round] += 1
        other = dataclasses.replace(record, checksum="0" * 16)
        return Message(pack({m: encode(other)}), reply_to=message)

    keys = {"privacy.clip": 1.0, "privacy.noise": 4.0, "privacy.reproducible": True}
    keys |= {"rounds": 4, "clients": 2, "cohort": 2, "batch_size": 8, "evaluate_every": 4}
    settings = config(method, **keys, **{"task_options.max_train": 16, "checkpoint_every": 2})
    grid, folder = InProcessGrid(lying, 2), tmp_path / "checkpoints"
    outcome = execute(settings, grid, checkpoints=Checkpoints(folder))
    assert outcome.status == "completed", outcome.error
    assert {n for (m, _), n in seen.items() if m == 1} == {uploads}
    views = outcome.settings.releases  # batches are all that a client holds
    assert spent(outcome) == 4 * uploads * views
    assert outcome.events["resyncs"] == 4 * min(wrong_answers, 3)
    start = read_checkpoint(checkpoint_path(folder, 2))
    honest = InProcessGrid(app, 2)
    resumed = execute(settings, honest, checkpoints=Checkpoints(folder, start))
    assert spent(resumed) == (4 + 2 * (uploads - 1)) * views


def spent(outcome):
    return run_result(outcome, command=[], started_at="").privacy["smashed_data"]["uploads"]
