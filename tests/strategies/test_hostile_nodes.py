"""One hostile SuperNode among honest ones: the run goes on, and the account stays that of who was
asked (docs/threat-model.md)."""

import dataclasses

import pytest
import torch
from flwr.app import Array, ConfigRecord

from leansplit.clients.app import task_client_app
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.strategies import ExpectedSamples, federation, observed_grid, roster
from leansplit.strategies.failures import Failure
from leansplit.strategies.flower_records import CostReport, with_costs
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.wire import (
    ANY,
    DIRECTIONS,
    BehindReply,
    DecodeError,
    SetupReply,
    TensorForm,
    decode,
    encode,
    tensor_bytes,
)

SMALL = {
    "task_options.max_train": 60,
    "task_options.max_test": 20,
    "clients": 3,
    "cohort": 3,
    "rounds": 2,
    "evaluate_every": 2,
}
VICTIM = 1
SETUP = "query.leansplit_setup"
UP_ENVELOPE = ("uplink", "envelope")


class Hostile:
    """A ClientApp whose answers one node changes on their way to the server."""

    def __init__(self, change, restarts_in=None):
        self.app, self.change, self.restarts_in = task_client_app(), change, restarts_in

    def __call__(self, message, context):
        is_restart = message.metadata.group_id == self.restarts_in
        if is_restart and context.node_config["partition-id"] == VICTIM:
            context.state.clear()
        reply = self.app(message, context)
        if context.node_config["partition-id"] == VICTIM:
            self.change(message, reply)
        return reply


def run(change=lambda message, reply: None, method="ho-sfl", restarts_in=None, **keys):
    settings = run_config(method, SMALL | keys)
    per_node = settings.clients_per_node
    grid = InProcessGrid(Hostile(change, restarts_in), -(-settings.clients // per_node))
    return execute(settings, grid)


def payloads_of(reply):
    return reply.content.array_records["leansplit"]


def array_of(blob):
    return Array(dtype="uint8", shape=(len(blob),), stype="leansplit.safetensors", data=blob)


def size_of(content):
    return sum(len(a.data) for r in content.array_records.values() for a in r.values())


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["²", "9" * 5000, "7", "-3", ""])
@pytest.mark.parametrize("method", ["ho-sfl", "fedavg"])
def test_the_round_of_an_answer_is_that_of_the_question(method, group):
    def change(message, reply):
        reply.metadata.__dict__["_group_id"] = group

    clean, outcome = run(method=method), run(change, method)
    assert outcome.status == "completed", outcome.error
    assert list(outcome.ledger) == list(clean.ledger)
    assert outcome.final_model_checksum == clean.final_model_checksum


@pytest.mark.parametrize(("key", "is_id"), [("2", True), ("9" * 18, True), ("9" * 19, False)])
def test_nothing_is_booked_to_clients_that_were_not_asked(key, is_id, monkeypatch):
    """Wherever the sender says that its bytes belong; keys that are no numbers name nobody."""
    monkeypatch.setattr("leansplit.wire.ledger._MOST_LOOSE", 2)  # packed all the time

    def change(message, reply):
        if message.metadata.message_type != SETUP:
            payloads_of(reply)[key] = array_of(b"x" * 1000)

    clean, outcome = run(), run(change)
    assert outcome.status == "completed", outcome.error
    assert list(outcome.ledger) == list(clean.ledger)
    exchanges = 2 * 2 + 1  # two in each round, and the final synchronisation
    assert outcome.events == ({"unasked_answers": exchanges} if is_id else {})
    assert outcome.final_model_checksum == clean.final_model_checksum


def test_a_report_for_a_client_of_another_node_is_not_booked_to_it():
    def change(message, reply):
        if message.metadata.message_type == SETUP:
            payloads_of(reply)["0"] = payloads_of(reply)[str(VICTIM)]

    clean, outcome = run(), run(change)
    assert outcome.status == "failed"

    def reported(ledger):
        return [e for e in ledger if (e.round, e.client_id, e.direction) == (0, 0, "uplink")]

    assert reported(outcome.ledger) == reported(clean.ledger)


@pytest.mark.parametrize("method", ["ho-sfl", "hosl", "decomfl"])
def test_no_client_hides_traffic_by_the_word_of_a_worker(method):
    """Only a simulation's worker can lag behind its client; elsewhere it is the client's lie."""
    behind, said = encode(BehindReply(version=-1, is_worker_gap=True)), []

    def change(message, reply):
        if message.metadata.message_type != SETUP and not said:
            said.append(message.metadata.group_id)
            payloads_of(reply)[str(VICTIM)] = array_of(behind)

    clean, outcome = run(method=method), run(change, method)
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {"resyncs": 1}

    def of_victim(ledger, direction):
        cells = [e for e in ledger if (e.client_id, e.direction) == (VICTIM, direction)]
        return sum(e.num_bytes for e in cells)

    more = [of_victim(outcome.ledger, d) - of_victim(clean.ledger, d) for d in DIRECTIONS]
    assert more[DIRECTIONS.index("uplink")] == len(behind)
    assert more[DIRECTIONS.index("downlink")] > 1000  # the weights that it claims to lack


def test_only_who_was_asked_to_watch_itself_is_believed_what_it_cost():
    def change(message, reply):
        if message.metadata.message_type != SETUP:
            with_costs(reply.content, CostReport(10**15, 0, 10**15, {7: (1,)}))

    # The first client asked is the one that counts: never the hostile one.
    clean, outcome = run(rounds=4), run(change, rounds=4)
    assert outcome.measured == clean.measured


@pytest.mark.parametrize("method", ["ho-sfl", "fedavg"])
def test_of_too_long_an_answer_no_byte_is_looked_at(method, monkeypatch):
    """Neither to price it nor to see whether a worker lags; all of it is envelope."""
    longest, limit = [0], 2_000_000
    for name in ("decode", "price", "recorddict_to_proto"):
        looked_at = getattr(observed_grid, name)

        def watched(given, *limits, looked_at=looked_at, **more):
            longest[0] = max(longest[0], len(given) if isinstance(given, bytes) else size_of(given))
            return looked_at(given, *limits, **more)

        monkeypatch.setattr(observed_grid, name, watched)

    def change(message, reply):
        if message.metadata.message_type != SETUP:
            key = str(VICTIM) if method == "ho-sfl" else "more"
            [name] = reply.content.array_records
            reply.content[name][key] = array_of(b"BehindReply" * 300_000)

    keys = {"replica_storage": "worker"} if method == "ho-sfl" else {}
    outcome = run(change, method, max_reply_mb=limit / 1e6, **keys)
    assert outcome.status == "completed", outcome.error
    assert outcome.events["dropped_size"] == 2
    assert 0 < longest[0] <= limit
    envelopes = {e.client_id: 0 for e in outcome.ledger}
    for e in outcome.ledger:
        envelopes[e.client_id] += e.num_bytes if (e.direction, e.kind) == UP_ENVELOPE else 0
    assert envelopes[VICTIM] > 2 * limit > envelopes[0]


def test_too_long_a_report_is_not_read(monkeypatch):
    read = []
    monkeypatch.setattr(roster, "decode_as", lambda blob, *args: read.append(len(blob)))
    outcome = run(max_reply_mb=1e-4)
    assert outcome.status == "failed" and "max_reply_mb" in outcome.error
    assert not read


# --- what they say -------------------------------------------------------------------------------

LOUD = "step failed\n\x1b[31mINFO: all is well\u202e" + "x" * 10**6


@pytest.mark.parametrize("is_error", [False, True])
@pytest.mark.parametrize("method", ["ho-sfl", "fedavg"])
def test_failure_texts_are_one_short_printable_line(method, is_error, caplog):
    def change(message, reply):
        if message.metadata.message_type == SETUP:
            return
        if is_error or method == "fedavg":
            raise RuntimeError(LOUD)  # as Flower tells it
        payloads_of(reply).clear()
        reply.content["leansplit-failures"] = ConfigRecord({str(VICTIM): LOUD})

    outcome = run(change, method)
    assert outcome.status == "completed", outcome.error
    said = [r.getMessage() for r in caplog.records if "dropped from this step" in r.getMessage()]
    assert said
    assert all(line.isprintable() and "step failed" in line and len(line) < 400 for line in said)


def test_one_node_cannot_flood_the_log(caplog):
    federation._say({m: Failure(f"reason {m}", "error") for m in range(1000)})
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 11
    assert (
        lines[-1].startswith("990 clients (10, 11, 12, 13, 14, ...)") and "990 other" in lines[-1]
    )


def test_a_report_that_is_refused_says_so_in_one_short_printable_line():
    def change(message, reply):
        if message.metadata.message_type == SETUP:
            name = "weights/\n\x1b[31m" + "x" * 10**5
            blob = tensor_bytes({name: torch.ones(1)}, {"SetupReply": "{}"})
            payloads_of(reply)[str(VICTIM)] = array_of(blob)

    outcome = run(change)
    assert outcome.status == "failed" and f"client {VICTIM}" in outcome.error
    assert outcome.error.isprintable() and len(outcome.error) < 400


# --- reports at set-up ---------------------------------------------------------------------------


def reporting(**changes):
    """Return a change of a node's report: fields, or functions of the report."""

    def change(message, reply):
        if message.metadata.message_type == SETUP:
            payloads = payloads_of(reply)
            report = decode(payloads[str(VICTIM)].data)
            new = {k: v(report) if callable(v) else v for k, v in changes.items()}
            payloads[str(VICTIM)] = array_of(encode(dataclasses.replace(report, **new)))

    return change


@pytest.mark.parametrize("method", ["sflv1", "sflv2", "mu-splitfed", "zo-sfl", "ho-sfl", "hosl"])
@pytest.mark.parametrize(
    "changes",
    [
        {"smashed_data": torch.empty(0, 7)},
        {"labels": torch.empty(0, 2, dtype=torch.int64)},
        {"smashed_data": lambda r: r.smashed_data.double()},
    ],
    ids=["z", "y", "type"],
)
def test_samples_that_no_server_model_could_take_are_refused_at_set_up(method, changes):
    """Also those of the first client that is heard, which no other contradicts."""
    outcome = run(reporting(**changes), method)
    assert outcome.status == "failed" and not outcome.rounds_completed
    assert f"the report of client {VICTIM} is wrong: SetupReply." in outcome.error


@pytest.mark.parametrize("method", ["ho-sfl", "fedavg"])
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"label_counts": []}, "it counts 0 labels, and there are 10"),
        ({"label_counts": lambda r: [*r.label_counts, 0]}, "it counts 11 labels"),
        ({"label_counts": lambda r: [-1, 1, *r.label_counts[2:]]}, "do not add up"),
        ({"num_samples": 10**12}, "at most 60 are possible"),
        ({"num_samples": lambda r: r.num_samples + 1}, "do not add up to num_samples"),
    ],
)
def test_counts_that_contradict_each_other_or_the_task_are_refused(method, changes, why):
    outcome = run(reporting(**changes), method)
    assert outcome.status == "failed" and why in outcome.error, outcome.error


@pytest.mark.parametrize(
    ("per_node", "claimed", "why"),
    [
        (1, "2", "one SuperNode reports clients 1 and 2"),
        (1, "3", "client 3, which the plan does not have"),
        (2, "1", "one SuperNode reports clients 1 and 2"),
    ],
)
def test_a_node_reports_no_more_clients_than_it_can_host(per_node, claimed, why):
    """With two clients a node, the hostile one is the second, which hosts client 2."""

    def change(message, reply):
        if message.metadata.message_type == SETUP:
            payloads = payloads_of(reply)
            payloads[claimed] = next(iter(payloads.values()))

    outcome = run(change, clients_per_node=per_node)
    assert outcome.status == "failed" and why in outcome.error, outcome.error
    hosted = {1: 1, 2: 2}[per_node]  # nothing that it reports is taken, or booked
    assert not [e for e in outcome.ledger if e.client_id == hosted]


def test_a_restarted_node_does_not_take_over_the_clients_of_another():
    asked = []

    def change(message, reply):
        if message.metadata.message_type == SETUP:
            asked.append(reply)
            if len(asked) > 1:
                payloads_of(reply)["2"] = payloads_of(reply).pop(str(VICTIM))

    clean, outcome = run(restarts_in="2", rounds=3), run(change, restarts_in="2", rounds=3)
    assert outcome.status == "completed", outcome.error
    assert outcome.events["dropped_report"] == 1
    assert outcome.num_samples == clean.num_samples


@pytest.mark.parametrize("method", ["ho-sfl", "fedavg"])
@pytest.mark.parametrize("what", ["more", "others", "the same"])
def test_a_restarted_node_must_report_what_it_did_at_first(method, what):
    reports = []

    def claim(report):
        reports.append(report)
        counts = list(report.label_counts)
        if len(reports) > 1 and what == "others":
            counts[counts.index(max(counts))] -= 1
            counts[0] += 1
        if len(reports) > 1 and what == "more":
            counts[0] += 1
        return counts

    def change(message, reply):
        reporting(label_counts=claim)(message, reply)
        reporting(num_samples=lambda r: sum(r.label_counts))(message, reply)

    outcome = run(change, method, "2", rounds=4, evaluate_every=4)
    assert outcome.status == "completed", outcome.error
    kinds = {k: n for k, n in outcome.events.items() if k.startswith("dropped_")}
    if what == "the same":
        assert kinds == {"dropped_clients": 1, "dropped_node": 1}
    else:
        assert kinds == {"dropped_clients": 3, "dropped_node": 1, "dropped_report": 2}
    assert sum(outcome.label_counts[VICTIM]) == sum(reports[0].label_counts)


def report_of(num_samples, counts, z=(0, 3), y=(0,)):
    z, y = torch.empty(z), torch.empty(y, dtype=torch.int64)
    return SetupReply(num_samples=num_samples, label_counts=counts, smashed_data=z, labels=y)


def test_a_server_that_knows_nothing_keeps_what_it_can_check():
    nothing = ExpectedSamples()
    nothing.require_counts(report_of(5, [2, 3]), None)
    nothing.require_counts(report_of(5, []), None)
    for report, others in (
        (report_of(5, [2, 2]), None),
        (report_of(5, [2, 3]), 3),
        (report_of(10**12, []), None),
    ):
        with pytest.raises(DecodeError):
            nothing.require_counts(report, others)
    sample = nothing.sample(report_of(5, [2, 3]), has_mask=False)
    assert (sample.smashed_data.shape, sample.labels.num_classes) == ((3,), 2)


def test_sequences_are_as_long_as_the_model_takes_and_their_tokens_in_its_vocabulary():
    known = ExpectedSamples(num_classes=0, label_bound=50, longest=8)
    sample = known.sample(report_of(5, [], (0, 4, 3), (0, 4)), has_mask=True)
    z, y = sample.stacked(2)["smashed_data"], sample.stacked(2)["labels"]
    assert (z.shape, y.shape) == ((2, ANY, 3), (2, ANY))
    z.require("z", torch.ones(2, 8, 3))
    y.require("y", torch.tensor([[0, 49], [-100, 1]]))
    for form, wrong in (
        (z, torch.ones(2, 9, 3)),
        (y, torch.zeros(2, 9, dtype=torch.int64)),
        (y, torch.tensor([[50], [1]])),
        (y, torch.tensor([[-1], [1]])),
    ):
        with pytest.raises(DecodeError):
            form.require("it", wrong)
    for z_shape, y_shape in (((0, 3), (0,)), ((0, 4, 5, 3), (0, 4)), ((0, 4, 3), (0, 4, 4))):
        with pytest.raises(DecodeError, match="not of sequences"):
            known.sample(report_of(5, [], z_shape, y_shape), has_mask=True)


def test_what_a_model_without_a_cut_reports_of_samples_is_nothing():
    whole = ExpectedSamples(smashed_data=TensorForm(()), labels=TensorForm(()))
    with pytest.raises(DecodeError, match="those of this run"):
        whole.sample(report_of(5, []), has_mask=False)
