"""The same run on Flower's engine: one worker, two, two machines, a dying worker, going on."""

import shutil
import signal
import tempfile
import threading

import pytest

from leansplit.experiments.launch import launch, quiet
from leansplit.experiments.ray_cluster import gpu_share, worker_resources
from leansplit.server_app.checkpoint_files import CHECKPOINTS
from leansplit.server_app.checkpoints import Checkpoints, resumable
from leansplit.server_app.methods import METHODS
from leansplit.server_app.placement import Placement
from tests.whole_grid import WHOLE_GRID

# In one process every method equals its plain loop, and the main job runs four of them on this
# engine. A simulation costs half a minute of a core, so only what is on Ray alone is always tested;
# the whole grid has methods that differ in what they hold between messages, and one of each set of
# handlers and records.
ONE, TWO = (1, "momentum"), (2, "adamw")
METHODS_AND_WORKERS = [
    *((method, *TWO) for method in ("sflv2", "ho-sfl", "frozen")),
    *((method, *ONE) for method in ("fedavg", "ho-sfl", "sflv1")),
]
whole_grid = pytest.mark.skipif(not WHOLE_GRID, reason="LEANSPLIT_WHOLE_GRID=1 runs them")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@whole_grid
@pytest.mark.parametrize(("method", "workers", "optimizer"), METHODS_AND_WORKERS)
def test_any_number_of_workers_equals_the_reference(
    method, workers, optimizer, configure, reference_checksum
):
    config = configure(method, optimizer, workers=workers, replica_storage="worker", rounds=20)
    outcome = launch(config)
    assert outcome.status == "completed", outcome.error
    assert set(outcome.events) <= {"worker_refills"}
    assert outcome.final_model_checksum == reference_checksum(config)


@pytest.fixture
def two_machines(monkeypatch):
    """A Ray cluster of two nodes with one CPU each, as `ray start` would make it."""
    from ray.cluster_utils import Cluster

    # Ray notes the newest cluster in this folder, and would have other tests join it.
    folder = tempfile.mkdtemp(dir="/tmp", prefix="ray-")  # short: names of sockets are
    monkeypatch.setenv("RAY_TMPDIR", folder)
    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    ends = signal.getsignal(signal.SIGTERM)
    cluster = Cluster()
    try:
        with quiet():
            cluster.add_node(**node)
            cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, ends)  # nodes of a cluster in this process take it
        shutil.rmtree(folder, ignore_errors=True)


def test_two_machines_equal_the_reference(two_machines, configure, reference_checksum):
    keys = {"clients_per_node": "auto", "replica_storage": "worker", "ray_address": two_machines}
    config = configure("ho-sfl", "adamw", **keys)
    before = signal.getsignal(signal.SIGTERM)
    outcome = launch(config)
    assert signal.getsignal(signal.SIGTERM) == before
    assert outcome.status == "completed", outcome.error
    assert outcome.placement == Placement(clients_per_node=4, ray_workers=2, ray_nodes=2)
    assert set(outcome.events) <= {"worker_refills"}
    assert outcome.final_model_checksum == reference_checksum(config)


@whole_grid
def test_workers_share_the_gpus_that_ray_was_told_of():
    """No GPU is needed: what a worker may see is Ray's word, and torch's later."""
    import ray
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

    class Worker:
        def visible_gpus(self):
            import os

            return os.environ["CUDA_VISIBLE_DEVICES"]

    with quiet():
        ray.init(
            address="local", num_cpus=3, num_gpus=2, include_dashboard=False, log_to_driver=False,
            object_store_memory=80_000_000,
        )  # fmt: skip
        try:
            pool = BasicActorPool(ray.remote(Worker), worker_resources(gpu_share(3, 2)), {})
            pool.add_actors_to_pool(pool.actors_capacity)
            seen = ray.get([worker.visible_gpus.remote() for worker in pool.pool])
        finally:
            ray.shutdown()
    assert sorted(seen) == ["0", "0", "1"]


@whole_grid
@pytest.mark.parametrize("method", ["fsl-sage", "mu-splitfed", "decomfl", "ho-fl"])
def test_the_other_families_run_on_ray_as_well(method, configure, reference_checksum):
    packing = 1 if METHODS[method].one_client_per_node else 4
    config = configure(
        method, "sgd", workers=1, replica_storage="worker", rounds=3, clients_per_node=packing
    )
    outcome = launch(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.final_model_checksum == reference_checksum(config)


def test_a_dying_worker_does_not_poison_the_run(configure, monkeypatch, tmp_path):
    """Processes that ``faults.die`` ends are gone; the run goes on with their replacements."""
    monkeypatch.setenv("LEANSPLIT_TEST_PIDS", str(tmp_path))
    from leansplit.clients import handlers

    record_type, original = handlers.registered_handlers()["ho_sfl_forward"]

    def note_process(session, request):
        import os
        import pathlib

        (pathlib.Path(os.environ["LEANSPLIT_TEST_PIDS"]) / str(os.getpid())).touch()
        return original(session, request)

    monkeypatch.setitem(handlers._handlers, "ho_sfl_forward", (record_type, note_process))
    keys = {"cohort": 4, "rounds": 9, "evaluate_every": 9, "quorum_rounds": 9, "faults.die": 0.02}
    config = configure("ho-sfl", "sgd", workers=1, replica_storage="worker", **keys)
    method = config.method_config()
    deaths = [
        (t, m)
        for t in range(1, 10)
        for m in method.sample_cohort(t, range(config.clients))
        for exchange in (0, 1)
        if config.faults.strikes(config.seed, t, m, exchange) == "die"
    ]
    assert deaths == [(4, 3)]  # early enough for rounds to wait for the replacement
    outcome = launch(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.rounds_completed == 9
    assert outcome.events["dropped_node"] >= 1
    assert len(list(tmp_path.iterdir())) == 2  # one worker, and who took its place
    assert "unsynchronised_clients" not in outcome.events


@pytest.mark.parametrize("then", [-1, *([1] if WHOLE_GRID else [])])
def test_a_stopped_run_goes_on_with_another_number_of_workers(
    configure, reference_checksum, tmp_path, then
):
    """Two workers equal the reference, and moments that only they hold go through checkpoints."""
    keys = {"replica_storage": "worker", "client.lifetime": "run", "checkpoint_every": 1}
    config = configure("sflv2", "momentum", workers=2, rounds=5, **keys)
    stop = threading.Event()

    def watch(progress):
        if progress.round == 3:
            stop.set()

    folder = tmp_path / CHECKPOINTS
    stopped = launch(config, stop=stop, on_progress=watch, checkpoints=Checkpoints(folder))
    assert stopped.status == "interrupted"
    config = configure("sflv2", "momentum", workers=then, rounds=5, **keys)
    start = resumable(tmp_path, config)
    resumed = launch(config, checkpoints=Checkpoints(folder, start))
    assert resumed.status == "completed", resumed.error
    assert resumed.events == {"resumes": 1}
    assert resumed.final_model_checksum == reference_checksum(config)
