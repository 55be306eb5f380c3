"""Configurations of the methods with zeroth-order steps on both sides of the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

from leansplit.errors import require_choice, require_positive
from leansplit.federated.config import LocalStepsConfig, NoisedConfig, require_at_least_one
from leansplit.federated.optimizers import OptimizerConfig
from leansplit.federated.robust import RobustConfig
from leansplit.zeroth_order import ZerothOrderConfig

ReplicaMode = Literal["averaged", "sequential"]
REPLICA_MODES: Final[tuple[str, ...]] = get_args(ReplicaMode)


@dataclass(frozen=True, kw_only=True)
class ZOSplitConfig(LocalStepsConfig, NoisedConfig):
    """Split federated learning with zeroth-order steps on both sides of the cut."""

    weights_tell_more: ClassVar[bool] = False
    """They follow from directions that the server knows and the scalars that it sent."""

    zeroth_order: ZerothOrderConfig = ZerothOrderConfig(num_perturbations=1, estimator="central")
    """How both sides probe: P, mu, estimator, distribution."""
    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Each client's own optimizer; ``run`` keeps its moments at the client."""
    server_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Of each server replica (``run``: moments are averaged with the replicas), or of the one
    server model."""
    server_mode: ReplicaMode = "averaged"
    """``averaged``: a server replica for each client, averaged at the end of the round;
    ``sequential``: one server model, stepped client by client in a fresh order each round."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_choice("server mode", self.server_mode, REPLICA_MODES)

    @property
    def sends_anchor(self) -> bool:
        """Whether clients upload their unperturbed smashed data too."""
        return self.zeroth_order.estimator == "forward"

    @property
    def num_activations(self) -> int:
        """Smashed data that a client computes and uploads for each sample of a step."""
        is_central = self.zeroth_order.estimator == "central"
        return self.zeroth_order.num_perturbations * (1 + is_central) + self.sends_anchor

    @property
    def releases(self) -> int:
        """All of them."""
        return self.num_activations

    @property
    def server_robust(self) -> RobustConfig:
        """The rule for server replicas; one model that all clients share is nobody's answer."""
        return self.robust if self.server_mode == "averaged" else RobustConfig()


@dataclass(frozen=True, kw_only=True)
class MUSplitFedConfig(ZOSplitConfig):
    """MU-SplitFed (arXiv 2510.21155, NeurIPS 2025)."""

    tau: int = 2
    """Server steps for each client step, on the client's unperturbed smashed data."""
    global_lr: float = 0.3
    """eta_g, how far both halves go from where the round began to the clients' mean."""
    zeroth_order: ZerothOrderConfig = ZerothOrderConfig(
        num_perturbations=1, perturbation_scale=5e-3, estimator="central", direction="sphere"
    )
    """How both sides probe: P, mu (the paper's lambda), estimator, distribution."""
    client_optimizer: OptimizerConfig = OptimizerConfig(lr=5e-3, lifetime="round")
    """Each client's own optimizer; the paper's is plain SGD. ``run`` keeps its moments at the
    client."""
    server_optimizer: OptimizerConfig = OptimizerConfig(lr=1e-2, lifetime="round")
    """Of each server replica (``run``: moments are averaged with the replicas), or of the one
    server model; the paper's is plain SGD."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_at_least_one(self, "tau")
        require_positive("global_lr", self.global_lr)

    @property
    def sends_anchor(self) -> bool:
        """Always: the server trains on it."""
        return True


@dataclass(frozen=True, kw_only=True)
class ZOSFLConfig(ZOSplitConfig):
    """ZO-SFL, the all-zeroth-order baseline that HO-SFL (arXiv 2603.14773) defines."""

    client_optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw", lr=1e-3, weight_decay=1e-4, lifetime="round"
    )
    """Each client's own optimizer; ``run`` keeps its moments at the client."""
    server_optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw", lr=1e-3, weight_decay=1e-4, lifetime="round"
    )
    """Of each server replica (``run``: moments are averaged with the replicas), or of the one
    server model."""
