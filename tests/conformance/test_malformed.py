"""Whatever a client answers, the run is that of the others: a wrong answer is no answer.

Each kind of reply of each method is damaged in every way below, a different one in each round. The
run must equal one in which the same client did the same work and its answers were lost.
"""

import dataclasses
import json

import pytest
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from leansplit.clients.app import task_client_app
from leansplit.clients.memory import ClientMemory
from leansplit.server_app.execution import execute
from leansplit.server_app.methods import METHODS, is_used
from leansplit.strategies.flower_records import METRICS, NUM_SAMPLES, TRAIN_LOSS, pack, unpack
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.wire import BehindReply, SetupRequest, decode, encode
from tests.whole_grid import WHOLE_GRID

ALL = list(METHODS)
OF_EACH_FAMILY = ["ho-sfl", "heron-sfl", "sflv1", "mu-splitfed", "decomfl", "ho-fl", "fedavg"]
VICTIM = 1
SETUP = "query.leansplit_setup"


# --- damage to an encoded record -----------------------------------------------------------------


def damages(blob):
    """Yield (what was done, the damaged blob) for everything that can be wrong with a record."""
    length = int.from_bytes(blob[:8], "little")
    ((name, text),) = json.loads(blob[8 : 8 + length])["__metadata__"].items()
    header, tensors = json.loads(text), safetensors.torch.load(blob)

    def encoded(new_tensors=None, new_header=None, new_name=name):
        parts = tensors if new_tensors is None else new_tensors
        fields = header if new_header is None else new_header
        return safetensors.torch.save(
            {k: v.contiguous() for k, v in parts.items()}, {new_name: json.dumps(fields)}
        )

    for key in _one_of_each_field(tensors):
        for what, changed in _damaged(tensors[key]):
            yield f"{key} {what}", encoded({**tensors, key: changed})
        yield f"{key} missing", encoded({k: v for k, v in tensors.items() if k != key})
    yield "tensor too many", encoded({**tensors, "weights/more": torch.ones(1)})
    for key, value in header.items():
        for wrong in (None, 7 if isinstance(value, str) else "many"):
            yield f"{key} = {wrong!r}", encoded(new_header={**header, key: wrong})
        if key not in OPTIONAL:
            yield f"{key} missing", encoded(new_header={k: header[k] for k in header if k != key})
    if "num_samples" in header:
        yield "too many samples", encoded(new_header={**header, "num_samples": 10**9})
    yield "field too many", encoded(new_header={**header, "surprise": 1})
    yield "another record", encoded({}, {"plan": "{}"}, SetupRequest.__name__)
    yield "no record", b"nonsense"
    yield "nothing", b""


def _one_of_each_field(tensors):
    return list({key.partition("/")[0]: key for key in sorted(tensors)}.values())


def _damaged(tensor):
    flat = tensor.reshape(-1)
    yield "truncated", tensor[..., :-1] if tensor.ndim else flat
    yield "with one scalar more", torch.cat([flat, flat[:1]])
    yield "of another type", tensor.double() if tensor.dtype != torch.float64 else tensor.float()
    yield "of another shape", tensor.unsqueeze(0)


OPTIONAL = {"checksum", "moments_round"}  # left out, they mean something


# --- damage to a reply in Flower's own format ----------------------------------------------------


def flower_damages(content):
    """Yield (what was done, the damaged content) for everything that can be wrong with FedAvg's."""
    arrays, metrics = content["arrays"], content[METRICS]

    def changed(new_arrays=None, new_metrics=None, **more):
        return RecordDict(
            {
                "arrays": arrays if new_arrays is None else ArrayRecord(new_arrays),
                METRICS: metrics if new_metrics is None else MetricRecord(new_metrics),
                **more,
            }
        )

    tensors = dict(arrays.to_torch_state_dict())
    key, tensor = next(iter(tensors.items()))
    for what, wrong in _damaged(tensor):
        yield f"{key} {what}", changed({k: wrong if k == key else v for k, v in tensors.items()})
    yield f"{key} missing", changed({k: v for k, v in tensors.items() if k != key})
    yield "tensor too many", changed({**tensors, "more": torch.ones(1)})
    first = arrays[key]
    for what, wrong in {
        "cut off": Array(first.dtype, first.shape, first.stype, first.data[:-3]),
        "no array": Array(first.dtype, first.shape, first.stype, b"nonsense"),
        "of unknown format": Array(first.dtype, first.shape, "mine", first.data),
        "of unknown type": Array("nonsense", first.shape, first.stype, first.data[:-3]),
        "of a type that is no Python": Array("f4,(2", first.shape, first.stype, first.data[:-3]),
    }.items():
        yield f"{key} {what}", changed({k: wrong if k == key else v for k, v in arrays.items()})
    for key in (NUM_SAMPLES, TRAIN_LOSS):
        yield f"{key} missing", changed(None, {k: v for k, v in metrics.items() if k != key})
        yield f"{key} a list", changed(None, {**metrics, key: [1, 2]})
    yield "too many samples", changed(None, {**metrics, NUM_SAMPLES: 10**9})
    yield "metric too many", changed(None, {**metrics, "more": 1.0})
    yield "record too many", changed(None, None, more=ConfigRecord({"more": 1}))
    yield "record renamed", RecordDict({"weights": arrays, METRICS: metrics})
    yield "no arrays", RecordDict({METRICS: metrics})
    yield "nothing", RecordDict()


# --- runs ----------------------------------------------------------------------------------------


class Tampered:
    """A ClientApp whose answers of one kind are changed on their way to the server."""

    def __init__(self, kind=None, change=None):
        self.app = task_client_app()
        self.kind = kind
        self.change = change
        self.seen = {}  # kind of reply -> one of them
        self.times = 0

    def __call__(self, message, context):
        reply = self.app(message, context)
        if context.node_config["partition-id"] != VICTIM:
            return reply
        action, content = message.metadata.message_type, reply.content
        blob = unpack(content).get(VICTIM)
        kind = (action, type(decode(blob)).__name__ if blob else "RecordDict")
        self.seen.setdefault(kind, blob or content)
        if kind != self.kind:
            return reply
        self.times += 1
        return Message(self.change(blob or content), reply_to=message)


def lose(_):
    return pack({}, {VICTIM: "lost"})


def lose_all(_):  # the same for a client of FedAvg, which has no such word
    return RecordDict()


def run(config, kind=None, change=None):
    app = Tampered(kind, change)
    return execute(config, InProcessGrid(app, config.clients)), app


def damage_in_turn(blob_or_content):
    """Return a change that does something else to every answer, and how many there are."""
    done = []

    def change(answer):
        is_blob = isinstance(answer, bytes)
        found = list(damages(answer) if is_blob else flower_damages(answer))
        what, damaged = found[len(done) % len(found)]
        done.append(what)
        return pack({VICTIM: damaged}) if is_blob else damaged

    found = damages if isinstance(blob_or_content, bytes) else flower_damages
    return change, done, len(list(found(blob_or_content)))


def mended(outcome):
    """Return the events, whatever the reasons."""
    kinds = ("dropped_", "unasked_")
    total = outcome.events["dropped_clients"]
    return total, {k: v for k, v in outcome.events.items() if not k.startswith(kinds)}


def everything_but_times(outcome):
    return [{k: v for k, v in row.items() if "bytes" not in k and k != "wall_time_s"}
            for row in outcome.rounds]  # fmt: skip


# One of each set of records; every damage of every answer is a run.
@pytest.mark.parametrize("method", ALL if WHOLE_GRID else OF_EACH_FAMILY)
def test_a_malformed_answer_is_as_good_as_none(method, configure):
    def config(rounds):
        small = {"clients": 2, "cohort": 2, "batch_size": 5, "evaluate_every": rounds}
        if is_used(method, "probe.num_perturbations"):
            small["probe.num_perturbations"] = 2
        return configure(method, "adamw", partition="iid", rounds=rounds, **small)

    _, clean = run(config(2))
    kinds = [kind for kind in clean.seen if kind[0] not in {SETUP, "train.synchronise"}]
    assert kinds
    for kind in kinds:
        change, done, count = damage_in_turn(clean.seen[kind])
        damaged, app = run(config(count), kind, change)
        lost, same_app = run(config(count), kind, lose if kind[1] != "RecordDict" else lose_all)
        assert damaged.status == "completed", (damaged.error, done[-1])
        assert app.times == same_app.times >= count
        assert mended(damaged) == mended(lost)
        assert damaged.events["dropped_clients"] == app.times
        assert everything_but_times(damaged) == everything_but_times(lost)
        assert damaged.final_model_checksum == lost.final_model_checksum, kind


REPLICATED = ["ho-sfl", "hosl", "decomfl"]


@pytest.mark.parametrize("method", REPLICATED)
def test_a_malformed_final_answer_leaves_a_client_unsynchronised(method, configure):
    config = configure(method, clients=3, cohort=3, rounds=2)
    clean, app = run(config)
    kind = ("train.synchronise", "SyncReply")
    for what, damaged in damages(app.seen[kind]):
        outcome, _ = run(config, kind, lambda _, damaged=damaged: pack({VICTIM: damaged}))
        assert outcome.status == "completed", (what, outcome.error)
        assert outcome.events == {"unsynchronised_clients": 1}, what
        assert outcome.final_model_checksum == clean.final_model_checksum


@pytest.mark.parametrize("method", REPLICATED)
def test_a_client_that_cannot_even_say_that_it_is_behind_is_dropped(method, configure):
    config = configure(method, clients=3, cohort=3, rounds=3)

    class Forgetful(Tampered):
        def __call__(self, message, context):
            if message.metadata.group_id == "3":
                ClientMemory(context, VICTIM).forget("replica")
            return super().__call__(message, context)

    _, app = run(config)
    kind = next((action, "BehindReply") for action, _ in app.seen if action != SETUP)
    behind = encode(BehindReply(version=-1, is_worker_gap=True))
    for what, damaged in damages(behind):
        app = Forgetful(kind, lambda _, damaged=damaged: pack({VICTIM: damaged}))
        outcome = execute(config, InProcessGrid(app, config.clients))
        assert outcome.status == "completed", (what, outcome.error)
        assert outcome.events["dropped_clients"] == 1, what


@pytest.mark.parametrize("method", REPLICATED)
def test_a_replica_that_differs_for_good_is_dropped_and_counted(method, configure):
    def lie(blob):
        record = decode(blob)
        return pack({VICTIM: encode(dataclasses.replace(record, checksum="0" * 16))})

    config = configure(method, clients=3, cohort=3, rounds=3)
    _, app = run(config)
    kind = next(kind for kind in app.seen if kind[0] != SETUP)
    outcome, app = run(config, kind, lie)
    assert outcome.status == "completed"
    assert outcome.events["dropped_clients"] == outcome.events["checksum_mismatches"] == 3


def test_features_that_are_uploaded_once_must_be_of_all_samples(configure):
    def first_batch(blob):
        record = decode(blob)
        z, y = record.smashed_data[:8], record.labels[:8]
        return pack({VICTIM: encode(dataclasses.replace(record, smashed_data=z, labels=y))})

    config = configure("frozen", clients=3, cohort=3, rounds=3, features_once=True)
    outcome, app = run(config, ("train.frozen_forward", "SmashedDataReply"), first_batch)
    assert outcome.status == "completed"
    assert outcome.events == {"dropped_clients": 3, "dropped_shape": 3}
    assert app.times == 3  # it is asked again, for it is not known


@pytest.mark.parametrize("method", ["ho-sfl", "sflv2", "heron-sfl", "zo-sfl"])
def test_labels_that_are_no_classes_drop_their_client(method, configure):
    def mislabel(blob):
        record = decode(blob)
        is_many = isinstance(record.labels, dict)
        wrong = {k: v + 10 for k, v in record.labels.items()} if is_many else record.labels + 10
        return pack({VICTIM: encode(dataclasses.replace(record, labels=wrong))})

    config = configure(method, clients=3, cohort=3, rounds=2)
    _, app = run(config)
    kind = next(kind for kind in app.seen if kind[0] != SETUP)
    outcome, _ = run(config, kind, mislabel)
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {"dropped_clients": 2, "dropped_value": 2}


def test_nobody_answers_for_others(configure):
    """A node that names another client is not heard, and the other client's answer stands."""
    config = configure("ho-sfl", clients=3, cohort=3, rounds=2)
    kind = ("train.ho_sfl_forward", "SmashedDataReply")
    lost, _ = run(config, kind, lose)
    for key in ("0", "2", "-1", "many", "9" * 5000):
        outcome, _ = run(config, kind, lambda blob, key=key: renamed(pack({0: blob}), key))
        assert outcome.status == "completed", outcome.error
        assert mended(outcome) == mended(lost)
        # "many" names nobody; keys so long are no ids; all others are of clients not asked there
        assert outcome.events.get("unasked_answers", 0) == (2 if key in {"0", "2", "-1"} else 0)
        assert outcome.final_model_checksum == lost.final_model_checksum


def renamed(content, key):
    [record] = content.array_records.values()
    record[key] = record.pop("0")
    return content


def test_a_malformed_report_ends_the_set_up_and_names_the_client(configure):
    config = configure("ho-sfl", clients=3, cohort=3, rounds=2)
    _, app = run(config)
    kind = (SETUP, "SetupReply")
    for what, damaged in damages(app.seen[kind]):
        if what in {"labels truncated", "labels with one scalar more"}:
            continue  # labels of no samples stay so
        outcome, _ = run(config, kind, lambda _, damaged=damaged: pack({VICTIM: damaged}))
        assert outcome.status == "failed", what
        assert f"client {VICTIM}" in outcome.error, (what, outcome.error)
    outcome, _ = run(config, kind, lambda blob: pack({VICTIM: blob, 3: blob}))
    assert outcome.status == "failed" and "client 3, which the plan does not have" in outcome.error


def test_a_restarted_node_whose_report_is_malformed_is_left_out_until_it_is_not(configure):
    config = configure("ho-sfl", clients=3, cohort=3, rounds=6)

    class Restarted(Tampered):
        def __call__(self, message, context):
            if message.metadata.group_id == "2" and context.node_config["partition-id"] == VICTIM:
                context.state.clear()
            return super().__call__(message, context)

    reports = []

    def twice(blob):
        reports.append(blob)
        return pack({VICTIM: b"nonsense" if len(reports) in (2, 3) else blob})

    app = Restarted((SETUP, "SetupReply"), twice)
    outcome = execute(config, InProcessGrid(app, config.clients))
    assert outcome.status == "completed", outcome.error
    assert len(reports) == 4
    # lost in round 2, not set up again in 3 and 4, whole again in 5
    dropped = {"dropped_clients": 3, "dropped_node": 1, "dropped_report": 2}
    assert outcome.events == dropped | {"resyncs": 1}
