"""The plan that every client receives once: all it must know to take part."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from leansplit.errors import UserError
from leansplit.federated.attack import AttackConfig
from leansplit.federated.config import MethodConfig
from leansplit.federated.faults import FaultsConfig
from leansplit.zeroth_order import JointPassesMode

ReplicaStorage = Literal["context", "worker"]

_SIMULATED = ("clients_per_node", "replica_storage", "joint_passes", "client_device")


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """What a client needs beside its data and its half of the model."""

    run_id: str
    """Names this run; worker processes keep the replicas of different runs apart."""
    method: str
    config: MethodConfig
    """The method's settings."""
    num_clients: int
    clients_per_node: int = 1
    """Virtual clients that one SuperNode hosts."""
    replica_storage: ReplicaStorage = "context"
    """``context``: each client's replica lives in its Flower context, as on real SuperNodes.
    ``worker``: one replica per worker process serves all its clients (simulation only)."""
    joint_passes: JointPassesMode = "auto"
    """Whether a process runs the batches of several clients at once."""
    num_threads: int = 0
    """Torch threads of a client's computation; 0 leaves them as they are."""
    client_device: str = "cpu"
    """Where a process computes for its clients, such as ``cuda``; messages never depend on it."""
    is_whole_model: bool = False
    """Whether clients train the whole model and not only the layers below the cut."""
    has_mask: bool = False
    """Whether smashed data carry an attention mask; see :mod:`leansplit.sequences`."""
    fixed_checksum: str = ""
    """Of the frozen parameters and buffers that the client's model must have."""
    faults: FaultsConfig = FaultsConfig()
    """What clients inject into themselves."""
    attack: AttackConfig = AttackConfig()
    """What hostile clients do."""
    workload: dict[str, Any] = field(default_factory=dict)
    """Passed to the app's workload provider, such as task, model and partition."""

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        values = dataclasses.asdict(self) | {"config": self.config.to_dict()}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    @functools.lru_cache(maxsize=4)  # every message needs it, and it is the same all run long
    def from_json(cls, text: str) -> ClientPlan:
        """Read a plan from :meth:`to_json`.

        Raises:
            UserError: if it is none.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values["config"] = MethodConfig.from_dict(values["config"])
            values["faults"] = FaultsConfig(**values["faults"])
            values["attack"] = AttackConfig(**values["attack"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the plan cannot be read: {error}") from error

    @functools.cached_property
    def digest(self) -> str:
        """A short name for exactly this plan."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def for_one_client(self) -> ClientPlan:
        """Return what a client with a SuperNode of its own would be told.

        Without what only a simulation has, so that a set-up costs the same wherever it is.
        """
        alone: dict[str, Any] = {
            f.name: f.default for f in dataclasses.fields(self) if f.name in _SIMULATED
        }
        return dataclasses.replace(self, **alone)

    def hosted_clients(self, partition_id: int) -> list[int]:
        """Return the ids of the clients that the node with ``partition_id`` hosts."""
        first = partition_id * self.clients_per_node
        return list(range(first, min(first + self.clients_per_node, self.num_clients)))

    @property
    def num_nodes(self) -> int:
        """SuperNodes that the federation needs."""
        return -(-self.num_clients // self.clients_per_node)
