"""Clients that compute on another device: the same messages, and here the same bits."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from leansplit.clients import deferred
from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.launch import launch
from leansplit.experiments.ray_cluster import gpu_share, worker_resources
from leansplit.server_app.methods import METHODS
from leansplit.telling import leave_out
from leansplit.zeroth_order import unshared_directions
from tests.conformance.test_language_models import configure as configure_language_model
from tests.language import write_texts
from tests.pretended_device import PretendedDevice
from tests.whole_grid import WHOLE_GRID

WITH_REPLICAS = ("ho-sfl", "hosl", "decomfl")
REBUILT = (*WITH_REPLICAS, "ho-fl")
OPTIMIZERS = {method: ["adamw", "momentum"][i % 2] for i, method in enumerate(METHODS)}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((m, {}) for m in METHODS),
        *((m, {"replica_storage": "worker"}) for m in WITH_REPLICAS),
        ("frozen", {"features_once": True}),
    ],
)
def test_every_method_ends_in_the_same_bits(method, more, configure):
    """And models of clients really run there.

    On a device that rounds otherwise no replica differs all the same: where the server rebuilds
    what clients hold, both end in the same bits whatever the device rounds.
    """
    packing = 1 if METHODS[method].one_client_per_node else 4
    keys = {"workers": -1, "rounds": 3 if method in REBUILT else 2}
    keys |= {"clients_per_node": packing, **more}
    expected = launch(configure(method, OPTIMIZERS[method], **keys))
    assert expected.status == "completed", expected.error
    for rounds_otherwise in (False, True) if method in REBUILT or WHOLE_GRID else (False,):
        device = PretendedDevice(rounds_otherwise=rounds_otherwise)
        with device, unshared_directions():
            found = launch(configure(method, OPTIMIZERS[method], client_device="meta", **keys))
        assert found.status == "completed", found.error
        assert device.num_products > 0
        is_equal = found.final_model_checksum == expected.final_model_checksum
        assert is_equal != rounds_otherwise
        assert found.events == expected.events == {}
        assert found.ledger.by_kind() == expected.ledger.by_kind()


@pytest.mark.parametrize(
    ("method", "keys"),
    [("ho-sfl", {}), ("frozen", {"features_once": True}), ("heron-sfl", {}), ("sflv2", {})],
)
def test_so_do_language_models_with_masks_and_frozen_weights(method, keys, tmp_path):
    keys = {"workers": -1, "rounds": 2, **keys}
    texts = write_texts(tmp_path)
    configs = [
        configure_language_model(method, "bert", texts, **keys, **more)
        for more in ({}, {"client_device": "meta"})
    ]
    with sdpa_kernel(SDPBackend.MATH):  # what a device without a kernel of its own falls back to
        expected = launch(configs[0])
        with PretendedDevice(), unshared_directions():
            found = launch(configs[1])
    assert found.status == "completed", found.error
    assert found.events == expected.events == {}
    assert found.final_model_checksum == expected.final_model_checksum


def test_a_copy_on_the_device_is_not_counted_beside_the_replica(configure, monkeypatch):
    """What a client holds is on its device; the replica on the CPU is a simulation's."""

    def copied(vector, device):
        leave_out([vector])
        return vector.clone()

    expected = launch(configure("ho-sfl", "adamw", workers=-1, rounds=2)).measured
    monkeypatch.setattr(deferred, "on", copied)
    found = launch(configure("ho-sfl", "adamw", workers=-1, rounds=2)).measured
    assert found == expected != type(expected)()


def test_a_device_that_is_not_there_is_refused_before_anything_starts(configure):
    with pytest.raises(UserError, match="device 'cudda' cannot be used here"):
        launch(configure("ho-sfl", client_device="cudda", workers=-1))
    with pytest.raises(UserError, match="the CPU has no number"):
        launch(configure("ho-sfl", client_device="cpu:1", workers=-1))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch finds no GPU here"):
            launch(configure("ho-sfl", client_device="cuda", workers=2))
    with pytest.raises(UserError, match="must be cpu or cuda on Ray"):
        launch(configure("ho-sfl", client_device="cuda:1", workers=2))


def test_shares_of_a_gpu_leave_a_place_for_every_worker():
    assert gpu_share(4, 1) == 0.25
    assert gpu_share(3, 2) == 0.5  # two on one, one on the other
    assert gpu_share(1, 4) == 1
    assert gpu_share(93, 1) == 0.0107
    for workers in range(1, 130):
        for gpus in range(1, 9):
            share = gpu_share(workers, gpus)
            assert gpus * int(1 / share) >= workers
    with pytest.raises(UserError, match="offers Ray none"):
        gpu_share(2, 0)


@pytest.fixture
def gpus(monkeypatch):
    """Four GPUs for torch's word, and what Flower's engine is started with."""
    from flwr import simulation

    started = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(simulation, "run_simulation", lambda **given: started.update(given))
    return started


@pytest.mark.parametrize(("device", "num_gpus", "share"), [("cuda", 4, 0.3333), ("cpu", None, 0.0)])
def test_the_workers_of_a_run_are_given_their_share(device, num_gpus, share, configure, gpus):
    with pytest.raises(RunFailedError, match="ended without a result"):
        launch(configure("ho-sfl", client_device=device, workers=10, clients_per_node=2))
    backend = gpus["backend_config"]
    assert backend["init_args"]["num_cpus"] == 10
    assert backend["init_args"].get("num_gpus") == num_gpus
    assert backend["client_resources"] == {"num_cpus": 1, "num_gpus": share, "max_restarts": -1}
    assert gpus["num_supernodes"] == 4


def test_flower_makes_a_worker_for_every_core_whatever_the_gpus(monkeypatch):
    from flwr.simulation.ray_transport import ray_actor

    for cores in (1, 3, 4, 10, 64):
        for gpus in (1, 2, 3, 8):
            offers = {"CPU": cores, "GPU": gpus}
            monkeypatch.setattr(
                ray_actor.ray, "nodes", lambda offers=offers: [{"Resources": offers}]
            )
            resources = worker_resources(gpu_share(cores, gpus))
            assert ray_actor.pool_size_from_resources(resources) == cores
