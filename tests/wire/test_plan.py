import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.errors import UserError
from leansplit.federated import (
    AttackConfig,
    FaultsConfig,
    FedAvgConfig,
    HOSFLConfig,
    OptimizerConfig,
    SplitFedConfig,
)
from leansplit.wire import ClientPlan
from leansplit.zeroth_order import ZerothOrderConfig


def plan(**changes):
    values = {
        "run_id": "r1",
        "method": "ho-sfl",
        "num_clients": 10,
        "clients_per_node": 3,
        "config": HOSFLConfig(
            cohort_size=4,
            root_seed=-5,
            client_optimizer=OptimizerConfig(name="adamw", lr=1e-3, lifetime="round"),
            zeroth_order=ZerothOrderConfig(num_perturbations=7, direction="sphere"),
        ),
        "workload": {"task": "digits", "cut_layer": "relu2", "alpha": 0.1, "deep": {"a": [1]}},
    }
    return ClientPlan(**values | changes)


@pytest.mark.parametrize(
    "original",
    [
        plan(),
        plan(config=SplitFedConfig(cohort_size=1), replica_storage="worker", num_threads=2),
        ClientPlan(run_id="", method="fedavg", num_clients=1, config=FedAvgConfig(cohort_size=1)),
    ],
)
def test_round_trip(original):
    read = ClientPlan.from_json(original.to_json())
    assert read == original
    assert read.to_json() == original.to_json()
    assert read.digest == original.digest
    assert type(read.config) is type(original.config)


def test_json_is_canonical():
    text = plan().to_json()
    values = json.loads(text)
    assert text == json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert plan(workload={"a": 1, "b": 2}).digest == plan(workload={"b": 2, "a": 1}).digest


def test_every_field_changes_the_digest():
    changes = {
        "run_id": "r2",
        "method": "frozen",
        "num_clients": 11,
        "clients_per_node": 4,
        "config": HOSFLConfig(cohort_size=5),
        "replica_storage": "worker",
        "joint_passes": "off",
        "num_threads": 1,
        "client_device": "cuda",
        "is_whole_model": True,
        "has_mask": True,
        "fixed_checksum": "0123456789abcdef",
        "faults": FaultsConfig(drop=0.5),
        "attack": AttackConfig(kind="scale"),
        "workload": {},
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(ClientPlan)}
    digests = {plan(**{name: value}).digest for name, value in changes.items()}
    assert len(digests | {plan().digest}) == len(changes) + 1
    assert len(bytes.fromhex(plan().digest)) == 8


@given(st.integers(1, 60), st.integers(1, 70))
def test_nodes_host_every_client_exactly_once(num_clients, clients_per_node):
    packed = plan(num_clients=num_clients, clients_per_node=clients_per_node)
    hosted = [packed.hosted_clients(node) for node in range(packed.num_nodes)]
    assert [client for node in hosted for client in node] == list(range(num_clients))
    assert all(1 <= len(node) <= clients_per_node for node in hosted)
    assert packed.hosted_clients(packed.num_nodes) == []


def test_a_plan_with_values_that_are_not_allowed_is_refused():
    values = json.loads(plan().to_json())
    values["config"]["zeroth_order"]["perturbation_scale"] = -1
    with pytest.raises(UserError, match="perturbation_scale"):
        ClientPlan.from_json(json.dumps(values))
    with pytest.raises(UserError, match="HOSFLConfig"):
        ClientPlan.from_json(plan().to_json().replace("HOSFLConfig", "HOSFConfig"))
    with pytest.raises(UserError, match="colour"):
        ClientPlan.from_json(plan().to_json().replace("batch_size", "colour"))
    with pytest.raises(UserError, match="colour"):
        ClientPlan.from_json(json.dumps(json.loads(plan().to_json()) | {"colour": 1}))


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().num_clients = 1
