"""HO-SFL that probes ahead: the bits of two exchanges from one."""

import dataclasses

import pytest
from flwr.app import Message

from leansplit.clients.app import task_client_app
from leansplit.server_app.execution import execute
from leansplit.server_app.methods import METHODS
from leansplit.strategies import ho_sfl
from leansplit.strategies.flower_records import pack, unpack
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.wire import decode, encode

CASES = [
    ("momentum", {}),
    ("adamw", {"micro_batch": 3, "client.lifetime": "run", "replica_storage": "worker"}),
    ("sgd", {"probe.estimator": "central", "micro_batch": 3, "probe.direction": "sphere"}),
    ("adamw", {"probe.estimator": "central", "paper_code_scaling": True}),
    ("sgd", {"robust.rule": "median", "cohort": 5, "telemetry_every": 2}),
]


def rows(table, but=("wall_time_s", "uplink_bytes", "downlink_bytes", "num_exchanges")):
    return [{key: value for key, value in row.items() if key not in but} for row in table]


@pytest.mark.parametrize(("optimizer", "options"), CASES)
def test_one_exchange_gives_the_bits_of_two(
    optimizer, options, configure, run_in_process, reference_checksum, expected
):
    options = {"rounds": 5, **options}
    two = run_in_process(configure("ho-sfl", optimizer, **options))
    config = configure("ho-sfl", optimizer, probe_ahead=True, **options)
    one = run_in_process(config)
    assert one.status == "completed" and one.events == two.events == {}
    assert one.final_model_checksum == two.final_model_checksum == reference_checksum(config)
    assert rows(one.rounds) == rows(two.rounds)
    assert rows(one.telemetry) == rows(two.telemetry)
    assert (one.num_exchanges, two.num_exchanges) == (config.rounds + 2, 2 * config.rounds + 2)

    run = expected(config)
    shape = dataclasses.replace(run.shape, client_samples=one.num_samples)
    traffic = METHODS["ho-sfl"].traffic(run.settings, shape, run.attendance, one.samples_seen)
    kinds = [kind for kind in one.ledger.by_kind() if kind != "envelope"]
    assert traffic == {
        (way, kind): size
        for way in ("uplink", "downlink")
        for kind in kinds
        if (size := one.ledger.total_bytes(way, kind))
    }
    per_batch = 1 + 3 * (2 if "central" in options.values() else 1)
    smashed = [run.ledger.total_bytes("uplink", "smashed_data") for run in (one, two)]
    assert smashed[0] == per_batch * smashed[1]


def test_a_client_counts_what_was_predicted(configure, run_in_process):
    keys = {"partition": "iid", "rounds": 4, "batch_size": 16}
    one, two = (run_in_process(configure("ho-sfl", probe_ahead=it, **keys)) for it in (True, False))
    predicted, measured = one.predicted, one.measured
    assert measured.client_step_flops == predicted.client_step_flops > 0
    assert measured.client_step_flops == two.measured.client_step_flops
    peak = predicted.client_peak_memory_bytes
    assert measured.client_peak_memory_bytes == pytest.approx(peak, rel=0.02)
    assert one.client_costs.peak_memory_bytes > two.client_costs.peak_memory_bytes


def test_lost_answers_are_lost_alike(configure):
    """Whether a client did its work or not: its memory differs, the run does not."""
    outcomes = []
    for ahead in (False, True):
        app = task_client_app()
        action = "train.ho_sfl_probe_ahead" if ahead else "train.ho_sfl_forward"

        def losing(message, context, app=app, action=action):
            own, round = context.node_config["partition-id"], int(message.metadata.group_id or 0)
            strikes = message.metadata.message_type == action and (own + round) % 4 == 0
            if strikes and round % 2:
                return Message(pack({}, {own: "lost on its way up"}), reply_to=message)
            reply = app(message, context)
            return Message(pack({}, {own: "lost"}), reply_to=message) if strikes else reply

        config = configure("ho-sfl", "adamw", cohort=5, probe_ahead=ahead)
        outcomes.append(execute(config, InProcessGrid(losing, config.clients)))
    two, one = outcomes
    assert one.status == "completed", one.error
    assert one.events == two.events and set(one.events) == {"dropped_clients", "dropped_error"}
    assert one.final_model_checksum == two.final_model_checksum


def test_smashed_data_that_no_scalar_can_hold_drop_their_client(configure, monkeypatch):
    """Differences beyond float32, from finite smashed data: a client's own would be refused."""
    real = ho_sfl.surrogate_differences

    def beyond_float32(smashed_gradient, probed, micro_batch):
        v = real(smashed_gradient, probed, micro_batch)
        return v * 1e60 if bool((probed.plus == 7).all()) else v

    app = task_client_app()

    def odd(message, context):
        reply = app(message, context)
        if message.metadata.message_type != "train.ho_sfl_probe_ahead":
            return reply
        answers = {m: decode(blob) for m, blob in unpack(reply.content).items()}
        if 2 in answers:
            answers[2] = dataclasses.replace(answers[2], plus=answers[2].plus.fill_(7))
        return Message(pack({m: encode(each) for m, each in answers.items()}), reply_to=message)

    monkeypatch.setattr(ho_sfl, "surrogate_differences", beyond_float32)
    config = configure("ho-sfl", cohort=8, rounds=3, probe_ahead=True)
    outcome = execute(config, InProcessGrid(odd, config.clients))
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {"dropped_clients": 3, "dropped_non_finite": 3}


def test_hostile_clients_have_no_scalars_to_change(configure, run_in_process):
    clean = run_in_process(configure("ho-sfl", probe_ahead=True))
    attack = {"attack.kind": "sign_flip", "attack.share": 0.5}
    hostile = run_in_process(configure("ho-sfl", probe_ahead=True, **attack))
    assert hostile.final_model_checksum == clean.final_model_checksum
    apart = run_in_process(configure("ho-sfl", **attack))
    assert apart.final_model_checksum != clean.final_model_checksum
