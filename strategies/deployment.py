"""Where and how the clients of a strategy run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from leansplit.errors import UserError, require_choice, require_positive
from leansplit.federated import AttackConfig, FaultsConfig
from leansplit.strategies.failures import Quorum
from leansplit.wire import ReplicaStorage
from leansplit.zeroth_order import JOINT_PASSES_MODES, JointPassesMode


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Where and how the clients of a strategy run; nothing here changes what is learned."""

    num_clients: int | None = None
    """Clients in all; default: one for each connected SuperNode."""
    clients_per_node: int = 1
    """Virtual clients that one SuperNode hosts."""
    replica_storage: ReplicaStorage = "context"
    """See :class:`leansplit.wire.ClientPlan`; ``worker`` saves memory in simulations."""
    joint_passes: JointPassesMode = "auto"
    """See :class:`leansplit.zeroth_order.JointPasses`."""
    num_threads: int = 0
    """Torch threads of a client's computation; 0 leaves them as they are."""
    client_device: str = "cpu"
    """Where clients compute, such as ``cuda``: to rounding, what the CPU computes."""
    exchange_timeout_s: float = 600.0
    """Clients that take longer than this to answer are dropped from the step."""
    max_reply_mb: float = 1024.0
    """Longer answers of a client are dropped unread, MB = 1e6 bytes."""
    quorum: float = 0.0
    """Share of the clients asked that must answer for a round to count; one must in any case."""
    quorum_rounds: int = 3
    """Rounds in a row without a quorum that end the run."""
    faults: FaultsConfig = FaultsConfig()
    """What the run injects into itself."""
    attack: AttackConfig = AttackConfig()
    """Which of its clients are hostile, and how."""
    workload: dict[str, Any] = field(default_factory=dict)
    """Passed to the client app's workload provider."""

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        if self.num_clients is not None and self.num_clients < 1:
            raise UserError(f"num_clients must be at least 1, got {self.num_clients}")
        if self.clients_per_node < 1:
            raise UserError(f"clients_per_node must be at least 1, got {self.clients_per_node}")
        if not self.exchange_timeout_s > 0:
            raise UserError(f"exchange_timeout_s must be above 0, got {self.exchange_timeout_s}")
        require_positive("max_reply_mb", self.max_reply_mb)
        require_choice("joint_passes", self.joint_passes, JOINT_PASSES_MODES)
        Quorum(self.quorum, self.quorum_rounds)
