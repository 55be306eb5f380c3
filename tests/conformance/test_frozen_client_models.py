"""CSE-FSL and HERON-SFL with a frozen client model: only the auxiliary head is trained."""

import dataclasses

import pytest
import torch

from leansplit.clients.app import split_client_app
from leansplit.federated import LIFETIMES, CSEFSLConfig, HeronSFLConfig
from leansplit.models import split_at
from leansplit.server_app.methods import METHODS
from leansplit.server_app.outputs import run_result
from leansplit.strategies import Deployment
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples
from tests.no_backward import NoBackward

BOTH = ["cse-fsl", "heron-sfl"]


@pytest.fixture
def frozen(configure):
    def build(method, optimizer="momentum", **options):
        settings = {"local_steps": 3, "upload_period": 2, "frozen_client": True}
        return configure(method, optimizer, **(settings | options))

    return build


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adamw"},
        {"server_mode": "averaged"},
        {"server_mode": "summed"},
        {"client_order": "sequential"},
        {"auxiliary.kind": "copy", "upload_period": 1},
        *({"optimizer": "adamw", "client.lifetime": lifetime} for lifetime in LIFETIMES),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("method", BOTH)
def test_equals_its_reference_loop_bit_for_bit(
    method, options, frozen, run_in_process, reference_checksum
):
    config = frozen(method, **options)
    outcome = run_in_process(config)
    assert outcome.status == "completed" and outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("method", BOTH)
def test_the_client_model_stays_where_it_began(method, frozen, run_in_process):
    config = frozen(method)
    workload = config.workload()
    model = workload.build_model(workload.load_task())
    state = run_in_process(config).final_state
    parts = model.full_state_dict()
    clients = {k for k in parts if k.split(".")[0] in dict(model.client_model.named_children())}
    assert clients and clients < parts.keys()
    for name, value in parts.items():
        assert torch.equal(value, state[name]) == (name in clients), name


@pytest.mark.parametrize("method", BOTH)
def test_the_ledger_equals_the_closed_formula(method, frozen, run_in_process, expected):
    config = frozen(method)
    outcome, run = run_in_process(config), expected(config)
    shape = dataclasses.replace(run.shape, client_samples=outcome.num_samples)
    predicted = METHODS[method].traffic(run.settings, shape, run.attendance, outcome.samples_seen)
    measured = {
        (direction, kind): outcome.ledger.total_bytes(direction, kind)
        for direction in ("uplink", "downlink")
        for kind in outcome.ledger.by_kind()
        if kind != "envelope" and outcome.ledger.total_bytes(direction, kind)
    }
    assert measured == predicted


@pytest.mark.parametrize("method", BOTH)
def test_packing_and_storage_change_nothing(method, frozen, run_in_process):
    plain = run_in_process(frozen(method))
    packed = run_in_process(frozen(method, clients_per_node=3, replica_storage="worker"))
    assert packed.final_model_checksum == plain.final_model_checksum
    assert [e for e in packed.ledger if e.round] == [e for e in plain.ledger if e.round]


@pytest.mark.parametrize("method", BOTH)
def test_a_client_that_failed_is_sent_the_client_model_again(method, frozen, run_in_process):
    """It may have been restarted and have lost its memory."""

    def fault(message, partition_id):
        is_third = message.metadata.group_id == "3"
        return "restarted" if is_third and partition_id == 1 else None

    def sent(outcome, client_id):
        weights = [
            entry.num_bytes
            for entry in outcome.ledger
            if (entry.client_id, entry.direction, entry.kind) == (client_id, "downlink", "weights")
        ]
        return [num_bytes > min(weights) for num_bytes in weights]

    config = frozen(method, clients=3, cohort=3, rounds=5)
    faulty = run_in_process(config, fault)
    assert faulty.events == {"dropped_clients": 1, "dropped_node": 1}
    assert sent(faulty, 0) == [True, False, False, False, False]
    assert sent(faulty, 1)[-2:] == [True, False]


@pytest.mark.parametrize("method", BOTH)
def test_a_pass_is_one_of_the_client_model(method, frozen, run_in_process):
    outcome = run_in_process(frozen(method, rounds=2))
    result = run_result(outcome, command=[], started_at="2026-01-01T00:00:00+00:00")
    assert (result.client_forwards, result.client_backwards) == (result.samples_seen, 0)
    trained = run_in_process(frozen(method, rounds=2, frozen_client=False))
    assert outcome.client_costs.flops < trained.client_costs.flops


def test_what_clients_can_do_alone_is_measured(frozen, configure, run_in_process):
    """A head on trained layers is worth more than one on layers as drawn, at equal steps."""
    steps = {"rounds": 40, "clients": 3, "cohort": 3, "partition": "iid", "local_steps": 3}
    alone = {
        is_frozen: run_in_process(
            frozen("cse-fsl", "momentum", **{**steps, "frozen_client": is_frozen})
        ).local_accuracy
        for is_frozen in (False, True)
    }
    assert alone[False] > alone[True] > 0.2
    assert run_in_process(configure("sflv1", rounds=1)).local_accuracy is None
    assert run_in_process(configure("fsl-sage", rounds=1)).local_accuracy is None


def test_telemetry_is_of_the_head(frozen, run_in_process, expected):
    plain, watched = (
        run_in_process(frozen("heron-sfl", rounds=3, telemetry_every=every)) for every in (0, 1)
    )
    assert watched.final_model_checksum == plain.final_model_checksum
    head = expected(watched.config).shape.auxiliary_elements
    assert {row["num_elements"] for row in watched.telemetry} == {head}


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        below = [torch.nn.Linear(4, 6), NoBackward(), torch.nn.Dropout(0.5)]
        return split_at(torch.nn.Sequential(*below, torch.nn.Linear(6, 3)), "2")


def data(client_id):
    generator = torch.Generator().manual_seed(client_id)
    labels = torch.randint(0, 3, (10,), generator=generator)
    return Examples(torch.randn(10, 4, generator=generator), labels)


LOSS = torch.nn.functional.cross_entropy


@pytest.mark.parametrize(
    ("method", "kind"), [("cse-fsl", CSEFSLConfig), ("heron-sfl", HeronSFLConfig)]
)
def test_the_client_model_is_neither_differentiated_nor_random(method, kind):
    """A first-order head trains above layers whose backward raises, without their dropout."""
    config = kind(cohort_size=2, frozen_client=True, batch_size=5)
    strategy = METHODS[method].strategy(build(), LOSS, config, deployment=Deployment(num_clients=4))
    grid = InProcessGrid(split_client_app(build, data, LOSS), 4)
    strategy.start(grid=grid, initial_arrays=strategy.initial_arrays(), num_rounds=3)
    assert strategy.rounds_completed == 3 and strategy.events == {}
    model = build()
    end = METHODS[method].reference(model, LOSS, [data(m) for m in range(4)], config, 3)
    for name, value in strategy.local.state_dict().items():
        assert torch.equal(value, end[name]), name
