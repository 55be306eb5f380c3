"""Configurations of the methods; the reference loops and the Flower strategies share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from leansplit.errors import UserError, require_choice
from leansplit.federated.optimizers import OptimizerConfig
from leansplit.zeroth_order import ZerothOrderConfig

ClientOrder = Literal["interleaved", "sequential"]
CLIENT_ORDERS: Final[tuple[str, ...]] = get_args(ClientOrder)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """What every method needs."""

    cohort_size: int
    """K, clients that take part in a round."""
    batch_size: int = 8
    """Samples of a client's batch; a client with fewer uses all it has."""
    root_seed: int = 0
    """Every random draw of the run derives from it."""

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        for what in ("cohort_size", "batch_size"):
            if getattr(self, what) < 1:
                raise UserError(f"{what} must be at least 1, got {getattr(self, what)}")


@dataclass(frozen=True, kw_only=True)
class HOSFLConfig(MethodConfig):
    """HO-SFL (arXiv 2603.14773)."""

    zeroth_order: ZerothOrderConfig = ZerothOrderConfig()
    """How clients probe: P, mu, estimator, distribution."""
    client_optimizer: OptimizerConfig = OptimizerConfig()
    """One optimizer, replayed identically by every client and the server's mirror."""
    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server's optimizer; one step a round on the cohort's mean gradient."""
    paper_code_scaling: bool = False
    """Scale the smashed gradient by the client's weight (1/K) as the authors' released code does,
    where the paper's mean has no such factor: the client update shrinks by K. AdamW hides it."""


@dataclass(frozen=True, kw_only=True)
class SplitFedConfig(MethodConfig):
    """Split federated learning, SFLV1 and SFLV2 (Thapa et al., AAAI 2022)."""

    local_steps: int = 1
    """Batches that a client trains on in a round."""
    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Each client's own optimizer. ``round``: fresh every round, as in the authors' code;
    ``run``: a client keeps its moments from one participation to the next."""
    server_optimizer: OptimizerConfig = OptimizerConfig()
    """SFLV1: of each replica (``run``: moments are averaged with the replicas). SFLV2: of the one
    server model."""
    client_order: ClientOrder = "interleaved"
    """``interleaved``: all clients take local step 1, then step 2 (one exchange for each step);
    ``sequential``: a client finishes its round before the next starts, as in the paper (one
    exchange for each client and step). The same for one local step; for SFLV1 always the same."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_choice("client order", self.client_order, CLIENT_ORDERS)
        if self.local_steps < 1:
            raise UserError(f"local_steps must be at least 1, got {self.local_steps}")


@dataclass(frozen=True, kw_only=True)
class FedAvgConfig(MethodConfig):
    """FedAvg (McMahan et al., AISTATS 2017): the whole model is trained at the client."""

    local_steps: int = 1
    """Batches that a client trains on in a round."""
    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Each client's own optimizer; ``run`` keeps its moments at the client."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        if self.local_steps < 1:
            raise UserError(f"local_steps must be at least 1, got {self.local_steps}")


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(MethodConfig):
    """The control: the client model never changes, only the server trains."""

    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server's optimizer; one step a round on the cohort's mean gradient."""
