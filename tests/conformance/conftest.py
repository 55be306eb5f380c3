"""Runs of any method on small digits federations, without Ray unless a test asks for it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from leansplit.clients.app import app
from leansplit.clients.task_workload import task_client_data
from leansplit.costs import SplitShape
from leansplit.federated import MethodConfig
from leansplit.models import SplitModel
from leansplit.parameters import checksum
from leansplit.server_app.closed_form import split_shape, uploaded_positions
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.execution import attending_config, execute, settled_config
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.placement import Placement
from leansplit.server_app.recording import Outcome
from leansplit.strategies.in_process_grid import Fault, InProcessGrid
from leansplit.tasks.task import Task

OPTIMIZERS = {
    "sgd": {"client.name": "sgd", "client.lr": 0.05, "server.name": "sgd", "server.lr": 0.1},
    "momentum": {
        "client.name": "sgd",
        "server.name": "sgd",
        "client.lr": 0.01,
        "client.momentum": 0.9,
        "server.lr": 0.05,
        "server.momentum": 0.9,
        "client.lifetime": "run",
        "server.lifetime": "run",
    },
    "adamw": {
        "client.name": "adamw",
        "client.lr": 0.003,
        "client.weight_decay": 0.01,
        "server.name": "adamw",
        "server.lr": 0.003,
    },
}


@pytest.fixture
def configure() -> Callable[..., RunConfig]:
    """Small federation with partial participation and skewed data; keywords override."""

    def build(method: str, optimizer: str = "momentum", **overrides: object) -> RunConfig:
        settings = {
            "task": "digits",
            "task_options.max_train": 240,
            "task_options.max_test": 60,
            "clients": 8,
            "cohort": 3,
            "rounds": 8,
            "partition": "dirichlet",
            "alpha": 0.3,
            "evaluate_every": 4,
            "probe.num_perturbations": 3,
            "replica_storage": "context",
            "alignment.period": 2,
            "alignment.epochs": 3,
            "alignment.batch_size": 9,
            "alignment.max_samples": 20,
            **OPTIMIZERS[optimizer],
        }
        if "local_steps" in METHODS[method].options:
            settings["local_steps"] = 2
        if "upload_period" in METHODS[method].options:
            settings["upload_period"] = min(2, int(overrides.get("local_steps", 2)))
        used = {key: value for key, value in settings.items() if is_used(method, key)}
        return run_config(method, used | overrides)

    return build


@pytest.fixture(scope="session")
def outcomes() -> dict[str, Outcome]:
    """What runs without faults came to, by their configuration."""
    return {}


@pytest.fixture
def run_in_process(outcomes: dict[str, Outcome]) -> Callable[..., Outcome]:
    """Run a configuration in this process; what came of it before is taken as it is.

    ``afresh`` runs in any case, for tests that have changed the code, or compare two runs.
    """

    def run(config: RunConfig, fault: Fault | None = None, *, afresh: bool = False) -> Outcome:
        key = json.dumps(config.to_dict(), sort_keys=True, default=str)
        is_plain = fault is None and not afresh
        if is_plain and key in outcomes:
            return outcomes[key]
        placement = Placement.in_process(config)
        grid = InProcessGrid(app, placement.num_nodes(config.clients), fault=fault)
        outcome = execute(config, grid, placement=placement)
        if is_plain:
            outcomes[key] = outcome
        return outcome

    return run


@dataclass(frozen=True)
class Expected:
    """What a run without faults must do, from its configuration alone."""

    settings: MethodConfig
    shape: SplitShape
    attendance: list[set[int]]
    """The cohort of each round."""


def _settings(config: RunConfig, task: Task, model: SplitModel) -> MethodConfig:
    """Return what a run's clients and server go by; who takes part is decided by measured steps."""
    if not config.fleet.profile:
        return settled_config(config, task, model)
    return attending_config(config, task, model)[0]


@pytest.fixture
def expected() -> Callable[[RunConfig], Expected]:
    """Settings, sizes and cohorts, as the method's row gives them."""

    def build(config: RunConfig) -> Expected:
        method, task = METHODS[config.method], config.workload().load_task()
        model = config.workload().build_model(task)
        settings = _settings(config, task, model)
        clients = [task_client_data(config.workload(), task)(m) for m in range(config.clients)]
        num_samples = {m: len(data.labels) for m, data in enumerate(clients)}
        shape = split_shape(config, settings, task, model, num_samples)
        rounds, population = range(1, config.rounds + 1), range(config.clients)
        attendance = [set(method.cohort(settings, shape, population, t)) for t in rounds]
        if model.has_mask:
            positions = [
                uploaded_positions(clients.__getitem__, settings, t, cohort, set())
                for t, cohort in zip(rounds, attendance, strict=True)
            ]
            shape = dataclasses.replace(shape, num_positions=sum(positions))
        return Expected(settings, shape, attendance)

    return build


@pytest.fixture
def check_ledger(expected) -> Callable[[RunConfig, Outcome], None]:
    """Hold a run's ledger to the closed formula, kind by kind."""

    def check(config: RunConfig, outcome: Outcome) -> None:
        run, method = expected(config), METHODS[config.method]
        shape = dataclasses.replace(run.shape, client_samples=outcome.num_samples)
        predicted = method.traffic(run.settings, shape, run.attendance, outcome.samples_seen)
        measured = {
            (direction, kind): outcome.ledger.total_bytes(direction, kind)
            for direction in ("uplink", "downlink")
            for kind in outcome.ledger.by_kind()
            if kind != "envelope" and outcome.ledger.total_bytes(direction, kind)
        }
        assert measured == predicted

    return check


@pytest.fixture
def reference_checksum() -> Callable[[RunConfig], str]:
    """Checksum of the model that the method's plain loop trains."""

    def run(config: RunConfig) -> str:
        workload = config.workload()
        task = workload.load_task()
        model = workload.build_model(task)
        client_data = task_client_data(workload, task)
        method = METHODS[config.method]
        clients = [client_data(m) for m in range(config.clients)]
        settings = _settings(config, task, model)
        method.reference(model, task.loss, clients, settings, config.rounds)
        return checksum(model.full_state_dict())

    return run
