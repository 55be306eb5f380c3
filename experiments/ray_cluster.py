"""Ray clusters of several machines: joining one that is there already."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from leansplit.errors import UserError
from leansplit.plugins import VARIABLE

CLIENT_RESOURCES: Final[dict[str, Any]] = {
    "num_cpus": 1,
    "num_gpus": 0.0,
    # A worker that dies is replaced: without restarts it would go back into the pool and fail every
    # message that it gets from then on.
    "max_restarts": -1,
}
"""What each worker takes of a machine."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined.

    Attributes:
        num_workers: that Flower will start on it, one for each CPU.
        num_nodes: machines that they are on.
    """

    num_workers: int
    num_nodes: int


@contextmanager
def joined(address: str) -> Iterator[Cluster]:
    """Join the cluster inside the block; Flower's engine then takes it as it is.

    Workers get this process's import path and the names of plugins. All else of their environment,
    such as where data are, is that of the Ray process on their own machine.

    Raises:
        UserError: if there is no such cluster, or none of its machines has a CPU to offer.
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
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node for node in nodes if node["Resources"].get("CPU")]
        if not alive:
            raise UserError(f"no machine of the Ray cluster at {address!r} offers a CPU")
        yield Cluster(pool_size_from_resources(CLIENT_RESOURCES), len(alive))
    finally:
        ray.shutdown()
