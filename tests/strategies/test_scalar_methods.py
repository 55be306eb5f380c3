"""HOSL and DeComFL: replicas stay exact over absences and lost answers; FedZO: bad weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.clients.app import app, split_client_app
from leansplit.clients.memory import ClientMemory
from leansplit.federated import (
    DeComFLConfig,
    FedZOConfig,
    HOSLConfig,
    OptimizerConfig,
    sample_cohort,
)
from leansplit.models import split_at
from leansplit.reference import decomfl, fedzo, hosl
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.strategies import HOSL, DeComFL, Deployment, FedZO
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples
from leansplit.zeroth_order import ZerothOrderConfig

ACTIONS = {"hosl": "hosl_forward", "decomfl": "decomfl_probe"}
METHODS = {
    "hosl": (HOSL, HOSLConfig, hosl, {"server_optimizer": OptimizerConfig(lr=0.1)}),
    "decomfl": (DeComFL, DeComFLConfig, decomfl, {"local_steps": 2}),
    "fedzo": (FedZO, FedZOConfig, fedzo, {"local_steps": 2}),
}


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)
        return split_at(nn.Sequential(*layers), "2")


def data(client_id):
    generator = torch.Generator().manual_seed(client_id)
    inputs = torch.randn(10, 4, generator=generator)
    return Examples(inputs, torch.randint(0, 3, (10,), generator=generator))


def start(method, app=None, num_rounds=8, **changes):
    strategy_type, config_type, _, options = METHODS[method]
    settings = {
        "cohort_size": 2,
        "client_optimizer": OptimizerConfig(name="adamw", lr=0.01),
        "zeroth_order": ZerothOrderConfig(num_perturbations=2),
    }
    config = config_type(**settings | options | changes)
    strategy = strategy_type(build(), F.cross_entropy, config, deployment=Deployment(num_clients=5))
    grid = InProcessGrid(app or split_client_app(build, data, F.cross_entropy), 5)
    strategy.start(grid, strategy.initial_arrays(), num_rounds=num_rounds)
    return strategy, grid


@pytest.mark.parametrize("method", METHODS)
def test_dropout_layers_do_not_disturb_the_probes(method):
    """All probes see the same function, and the run equals the reference bit for bit."""
    strategy, _ = start(method)
    expected = build()
    METHODS[method][2](
        expected, F.cross_entropy, [data(m) for m in range(5)], strategy.config, num_rounds=8
    )
    for name, value in strategy.model.full_state_dict().items():
        assert torch.equal(value, expected.full_state_dict()[name]), name


@pytest.mark.parametrize("method", ACTIONS)
def test_a_client_that_was_absent_ends_as_if_it_never_had_been(method):
    """After the final synchronisation every participant holds the mirror's bits, moments too."""
    strategy, grid = start(method)
    participants = strategy.attendance.participants
    assert len(participants) > 2  # with cohorts of two, somebody has been away
    expected = strategy.mirror.state()
    for m in participants:
        held = ClientMemory(grid.context_of(m), m).load("replica")
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[name], expected[name]) for name in expected)
    assert strategy.events == {}
    assert strategy.num_exchanges == 8 + 2  # set-up, a round each, the final synchronisation


class LosingGrid(InProcessGrid):
    """Lets one client do its work in one round, then loses the answer."""

    def __init__(self, action, round, partition_id):
        super().__init__(app, 5)
        self._lost = (f"train.{action}", str(round), partition_id)

    def _answer(self, message):
        reply = super()._answer(message)
        context = self._contexts[message.metadata.dst_node_id]
        metadata = message.metadata
        where = (metadata.message_type, metadata.group_id, context.node_config["partition-id"])
        if where != self._lost:
            return reply
        self._fault = lambda *_: "lost on the way"
        try:
            return super()._answer(message)
        finally:
            self._fault = None


@pytest.mark.parametrize("method", ACTIONS)
@pytest.mark.parametrize("storage", ["context", "worker"])
def test_an_answer_lost_on_the_way_back_needs_no_resync(method, storage):
    """The client may have newer seeds than the server knows of, so it gets whole rounds."""
    settings = {
        "task_options.max_train": 240,
        "task_options.max_test": 60,
        "clients": 5,
        "cohort": 4,
        "rounds": 8,
        "probe.num_perturbations": 2,
        "client.lr": 0.01,
        "client.momentum": 0.9,
        "replica_storage": storage,
    }
    config = run_config(method, settings)
    stays = next(
        m
        for m in range(5)
        if all(m in sample_cohort(config.seed, t, range(5), 4) for t in (3, 4, 5))
    )
    outcome = execute(config, LosingGrid(ACTIONS[method], 4, stays))
    assert outcome.status == "completed", outcome.error
    assert outcome.rounds_completed == 8
    assert outcome.events["dropped_clients"] == 1 and "resyncs" not in outcome.events


@pytest.mark.parametrize(("estimator", "uploads"), [("forward", 1 + 3), ("central", 1 + 6)])
def test_hosl_uploads_every_probe_once(estimator, uploads):
    probes = ZerothOrderConfig(num_perturbations=3, estimator=estimator)
    strategy, _ = start("hosl", num_rounds=1, zeroth_order=probes)
    sent = strategy.ledger.total_bytes("uplink", "smashed_data")
    assert sent == 2 * 8 * uploads * 6 * 4  # clients, batch, uploads, D_z, bytes


def test_fedzo_drops_the_client_whose_weights_are_not_finite():
    def broken(client_id):
        good = data(client_id)
        return Examples(good.inputs * float("nan"), good.labels) if client_id == 3 else good

    app = split_client_app(build, broken, F.cross_entropy)
    strategy, _ = start("fedzo", app, num_rounds=2, cohort_size=5)
    assert strategy.events == {"dropped_clients": 2, "dropped_non_finite": 2}
    assert all(value.isfinite().all() for value in strategy.model.full_model.state_dict().values())
