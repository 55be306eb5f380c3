"""Where the clients of a run are computed: SuperNodes and processes. No result depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.serverapp import Grid

from leansplit.server_app.config import RunConfig
from leansplit.server_app.methods import METHODS
from leansplit.strategies.roster import connected_nodes


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the clients of a run were spread.

    Attributes:
        clients_per_node: clients that one SuperNode hosts.
        ray_workers: processes that compute for SuperNodes; 0 = this one, or those of a deployment.
        ray_nodes: machines that these are on; 0 = no Ray.
    """

    clients_per_node: int
    ray_workers: int = 0
    ray_nodes: int = 0

    def num_nodes(self, num_clients: int) -> int:
        """Return how many SuperNodes host so many clients."""
        return -(-num_clients // self.clients_per_node)

    @classmethod
    def in_process(cls, config: RunConfig) -> Placement:
        """Return that of a run without Ray."""
        return cls(clients_per_node=_clients_per_node(config, 1, crosses_processes=False))

    @classmethod
    def on_ray(cls, config: RunConfig, ray_workers: int, ray_nodes: int = 1) -> Placement:
        """Return that of a run on so many workers."""
        per_node = _clients_per_node(config, ray_workers, crosses_processes=True)
        return cls(clients_per_node=per_node, ray_workers=ray_workers, ray_nodes=ray_nodes)

    @classmethod
    def on_grid(cls, config: RunConfig, grid: Grid) -> Placement:
        """Return that of a run on the SuperNodes that are connected."""
        if config.clients_per_node != "auto":
            return cls(clients_per_node=config.clients_per_node)
        num_nodes = len(connected_nodes(grid, 1, config.exchange_timeout_s))
        return cls(clients_per_node=-(-config.clients // num_nodes))


def _clients_per_node(config: RunConfig, num_processes: int, *, crosses_processes: bool) -> int:
    """Return how many clients a SuperNode hosts, chosen if that is left to us.

    One SuperNode for each process makes the fewest messages, and lets clients share the most.
    One for each client is chosen

    * where Flower averages one reply of each SuperNode;
    * where an injected death takes everyone down who is computed by the same message: which clients
      are lost would depend on the number of processes;
    * where messages carry every replica of the clients of a node from process to process.
    """
    if config.clients_per_node != "auto":
        return config.clients_per_node
    carries_replicas = crosses_processes and config.replica_storage == "context"
    if METHODS[config.method].one_client_per_node or config.faults.die or carries_replicas:
        return 1
    return -(-config.clients // num_processes)
