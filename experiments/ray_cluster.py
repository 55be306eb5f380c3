"""Ray clusters of several machines: joining one that is there already."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from leansplit.errors import UserError
from leansplit.plugins import VARIABLE

_RAYS_DIGITS = 10_000


def worker_resources(gpu_share: float) -> dict[str, Any]:
    """Return what each worker takes of a machine: a core, and a share of a GPU."""
    return {
        "num_cpus": 1,
        "num_gpus": gpu_share,
        # A worker that dies is replaced: without restarts it would go back into the pool and fail
        # every message that it gets from then on.
        "max_restarts": -1,
    }


def gpu_share(num_workers: float, num_gpus: float) -> float:
    """Return the share of a GPU that each of a machine's workers takes, at most a whole one.

    Ray never spreads a worker over two GPUs: a share is one over a whole number, cut off after the
    four digits that Ray counts in.

    Raises:
        UserError: if there is no GPU.
    """
    if num_gpus < 1:
        raise UserError(
            "client_device is a GPU, but a machine of the run offers Ray none; start it with "
            "--num-gpus, or with --num-cpus=0 to leave it out"
        )
    return math.floor(_RAYS_DIGITS / max(1, math.ceil(num_workers / num_gpus))) / _RAYS_DIGITS


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined.

    Attributes:
        num_workers: that Flower will start on it, one for each CPU.
        num_nodes: machines that they are on.
        gpu_share: of a GPU that each of them takes.
    """

    num_workers: int
    num_nodes: int
    gpu_share: float = 0.0


@contextmanager
def joined(address: str, *, wants_gpus: bool = False) -> Iterator[Cluster]:
    """Join the cluster inside the block; Flower's engine then takes it as it is.

    Workers get this process's import path and the names of plugins. All else of their environment,
    such as where data are, is that of the Ray process on their own machine.

    Raises:
        UserError: if there is no such cluster, or none of its machines has a CPU to offer, or one
            that does has no GPU although ``wants_gpus``.
    """
    import ray
    from flwr.simulation.ray_transport.ray_actor import pool_size_from_resources

    if address.startswith("ray://"):
        raise UserError(
            f"ray_address cannot be {address!r}: Flower's engine does not run through Ray Client; "
            "start leansplit on a machine of the cluster and give HOST:PORT, or auto"
        )
    if ray.is_initialized():
        raise UserError("this process is connected to Ray already; call ray.shutdown() first")
    paths = [*sys.path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    passed_on = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}
    passed_on |= {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
    ends = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": passed_on},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot join a Ray cluster at {address!r} ({reason}); start its head with "
            "`ray start --head --port=6379` and give the HOST:PORT that it prints"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ends)  # Ray's would end the process at once
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node for node in nodes if node["Resources"].get("CPU")]
        if not alive:
            raise UserError(f"no machine of the Ray cluster at {address!r} offers a CPU")
        offers = [node["Resources"] for node in alive]
        shares = [gpu_share(o["CPU"], o.get("GPU", 0)) for o in offers] if wants_gpus else [0.0]
        share = min(shares)  # one for all machines, so that all cores of each have a place
        yield Cluster(pool_size_from_resources(worker_resources(share)), len(alive), share)
    finally:
        ray.shutdown()
