"""Cases that a first review found broken, for every method that they can happen to."""

import pytest
import torch
from flwr.app import ArrayRecord

from leansplit.clients.app import split_client_app
from leansplit.errors import RunFailedError
from leansplit.federated import HOSFLConfig
from leansplit.models import split_at
from leansplit.models.resnet import FrozenBatchNorm2d
from leansplit.server_app.methods import METHODS, is_used
from leansplit.strategies import HOSFL, Deployment
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples


@pytest.mark.parametrize("method", list(METHODS))
def test_models_with_buffers_and_frozen_parameters(
    method, configure, run_in_process, reference_checksum
):
    options = {
        "model": "resnet18",
        "model_options.width": 8,
        "model_options.norm": "batch_frozen",
        "model_options.train_affine": False,
    }
    # Small rates: a zeroth-order step grows with the size of what it trains.
    options |= {key: 1e-4 for key in ("client.lr", "server.lr") if is_used(method, key)}
    config = configure(method, "sgd", rounds=2, **options)
    outcome = run_in_process(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("method", ["sflv1", "sflv2"])
def test_a_round_that_nobody_finishes_leaves_the_averages_alone(method, configure, run_in_process):
    def fault(message, partition_id):
        is_backward = message.metadata.message_type == "train.splitfed_backward"
        return "asleep" if is_backward and message.metadata.group_id == "2" else None

    one_round = run_in_process(configure(method, rounds=1))
    two_rounds = run_in_process(configure(method, rounds=2), fault)
    assert two_rounds.events["empty_rounds"] == 1
    client_side = [name for name in one_round.final_state if name.startswith("conv")]
    kept = list(one_round.final_state) if method == "sflv1" else client_side
    for name in kept:  # SFLV2's one server model did learn from what arrived
        assert torch.equal(one_round.final_state[name], two_rounds.final_state[name])


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(1, 2, 3), FrozenBatchNorm2d(2), torch.nn.Flatten()
        return split_at(torch.nn.Sequential(*layers, torch.nn.Linear(8, 2)), "1")


def data(client_id):
    inputs = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(client_id))
    return Examples(inputs, torch.tensor([0, 1, 0, 1, 0, 1]))


def start(strategy, arrays=None, app=None):
    grid = InProcessGrid(app or split_client_app(build, data), 4)
    return strategy.start(grid, arrays or strategy.initial_arrays(), num_rounds=2)


def hosfl():
    loss = torch.nn.functional.cross_entropy
    return HOSFL(build(), loss, HOSFLConfig(cohort_size=2), deployment=Deployment(num_clients=4))


def test_a_checkpoint_that_only_the_server_loaded_is_refused():
    strategy = hosfl()
    state = strategy.initial_arrays().to_torch_state_dict()
    state["1.running_mean"] += 1
    with pytest.raises(RunFailedError, match="frozen parameters or buffers differ"):
        start(strategy, ArrayRecord(state))


def test_a_strategy_can_be_started_twice():
    strategy = hosfl()
    arrays = strategy.initial_arrays()
    first = start(strategy, arrays)
    samples, traffic = strategy.samples_seen, strategy.ledger.total_bytes()
    second = start(strategy, arrays)
    assert (strategy.samples_seen, strategy.ledger.total_bytes()) == (samples, traffic)
    for name, value in first.arrays.to_torch_state_dict().items():
        assert torch.equal(value, second.arrays.to_torch_state_dict()[name])


def test_a_client_without_data_is_named():
    def no_data(client_id):
        return (
            data(client_id) if client_id != 3 else data(client_id).select(torch.tensor([]).long())
        )

    with pytest.raises(RunFailedError, match="client 3 has no samples"):
        start(hosfl(), app=split_client_app(build, no_data))


def test_an_error_of_the_strategy_fails_the_run_but_keeps_what_was_measured(
    configure, run_in_process
):
    from leansplit.server_app import execution

    def broken(*_):
        raise IndexError("index 12 is out of bounds")

    config = configure("frozen", rounds=4)
    original = execution.METHODS["frozen"].strategy.aggregate_train
    try:
        execution.METHODS["frozen"].strategy.aggregate_train = broken
        outcome = run_in_process(config)
    finally:
        execution.METHODS["frozen"].strategy.aggregate_train = original
    assert outcome.status == "failed"
    assert outcome.error == "IndexError: index 12 is out of bounds"
    assert outcome.rounds and outcome.ledger.total_bytes() > 0
