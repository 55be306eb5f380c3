"""How many clients share a SuperNode where that is left to leansplit; no result depends on it."""

import pytest

from leansplit.clients.app import app
from leansplit.errors import UserError
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.outputs import run_result
from leansplit.server_app.placement import Placement
from leansplit.server_app.results import config_hash
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.zeroth_order import JointPassChoice

SMALL = {
    **{"clients": 10, "cohort": 6, "rounds": 3, "evaluate_every": 3, "alpha": 0.3},
    **{"partition": "dirichlet", "task_options.max_train": 60, "task_options.max_test": 20},
}


def config(method="ho-sfl", per_node="auto", **settings):
    keys = SMALL | {"replica_storage": "worker"} | settings
    return run_config(method, keys | {"clients_per_node": per_node})


@pytest.mark.parametrize(
    ("settings", "workers", "per_node"),
    [
        ({}, 1, 10),
        ({}, 2, 5),
        ({}, 3, 4),
        ({}, 64, 1),
        ({"per_node": 7}, 2, 7),
        ({"method": "heron-sfl"}, 2, 5),
        ({"method": "ho-fl"}, 2, 5),
        ({"method": "fedavg"}, 2, 1),  # Flower averages one reply of each SuperNode
        ({"faults.die": 0.1}, 2, 1),  # a death takes all clients of a message
        ({"replica_storage": "context"}, 2, 1),  # messages would carry ten replicas
    ],
)
def test_each_worker_has_one_supernode_where_that_changes_nothing(settings, workers, per_node):
    placement = Placement.on_ray(config(**settings), workers)
    assert placement == Placement(clients_per_node=per_node, ray_workers=workers, ray_nodes=1)
    assert placement.num_nodes(10) == -(-10 // per_node)


def test_one_process_is_one_supernode():
    assert Placement.in_process(config(replica_storage="context")).clients_per_node == 10
    assert Placement.in_process(config("fedavg")).clients_per_node == 1


def run(settings, num_nodes, placement=None):
    return execute(settings, InProcessGrid(app, num_nodes), placement=placement)


def test_chosen_packing_changes_neither_bits_nor_ledger():
    alone = run(config(per_node=1), 10)
    packed = run(config(), 1, Placement.in_process(config()))
    found = run(config(), 3)  # as under `flwr run`: whoever is connected
    assert alone.status == "completed", alone.error
    for other in (packed, found):
        assert other.final_model_checksum == alone.final_model_checksum
        assert list(other.ledger) == list(alone.ledger)
        assert other.num_exchanges == alone.num_exchanges
    assert (packed.placement.clients_per_node, found.placement.clients_per_node) == (10, 4)
    result = run_result(found, command=[], started_at="2026-01-01T00:00:00+00:00")
    assert result.placement == {"clients_per_node": 4, "ray_workers": 0, "ray_nodes": 0}
    assert result.config["clients_per_node"] == "auto"


def test_the_size_of_joined_passes_that_was_fastest_is_noted():
    found = run(config(), 1)
    shape, other = (8, 1, 8, 8), (5, 1, 8, 8)
    found.joint_passes = [
        JointPassChoice(shape, 2, 1.4),
        JointPassChoice(shape, 4, 2.04),
        JointPassChoice(shape, 8, 1.9),
        JointPassChoice(other, 2, 1.1),
    ]
    result = run_result(found, command=[], started_at="2026-01-01T00:00:00+00:00")
    assert result.notes[-1] == (
        "Clients' batches that were run forward at once: up to 4 of shape 8 x 1 x 8 x 8 (2.0 times "
        "as fast), 2 of shape 5 x 1 x 8 x 8 (1.1 times as fast)."
    )


def test_where_a_cluster_is_makes_no_other_run():
    somewhere = config(ray_address="10.0.0.1:6379")
    assert somewhere.to_dict() == config().to_dict()
    assert config_hash(config().to_dict()) != config_hash(config(per_node=1).to_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_node": "most"}, "clients_per_node cannot be 'most': .*integer.* or .*'auto'"),
        ({"per_node": 0}, "clients_per_node must be at least 1, got 0"),
        ({"workers": -1, "ray_address": "auto"}, "workers must be 0 with ray_address, got -1"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)


def test_a_number_may_come_as_text():
    assert config(per_node="4").clients_per_node == 4
