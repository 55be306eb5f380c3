"""One hostile SuperNode among honest ones: the run goes on, and the account stays that of who was
asked (docs/threat-model.md)."""

import pytest
from flwr.app import Array

from leansplit.clients.app import task_client_app
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.strategies.flower_records import CostReport, with_costs
from leansplit.strategies.in_process_grid import InProcessGrid

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


class Hostile:
    """A ClientApp whose answers one node changes on their way to the server."""

    def __init__(self, change):
        self.app, self.change = task_client_app(), change

    def __call__(self, message, context):
        reply = self.app(message, context)
        if context.node_config["partition-id"] == VICTIM:
            self.change(message, reply)
        return reply


def run(change=lambda message, reply: None, method="ho-sfl", **keys):
    settings = run_config(method, SMALL | keys)
    per_node = settings.clients_per_node
    grid = InProcessGrid(Hostile(change), -(-settings.clients // per_node))
    return execute(settings, grid)


def payloads_of(reply):
    return reply.content.array_records["leansplit"]


def array_of(blob):
    return Array(dtype="uint8", shape=(len(blob),), stype="leansplit.safetensors", data=blob)


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


def test_only_who_was_asked_to_watch_itself_is_believed_what_it_cost():
    def change(message, reply):
        if message.metadata.message_type != SETUP:
            with_costs(reply.content, CostReport(10**15, 0, 10**15, {7: (1,)}))

    # The first client asked is the one that counts: never the hostile one.
    clean, outcome = run(rounds=4), run(change, rounds=4)
    assert outcome.measured == clean.measured
