"""Configurations of the methods whose clients train against an auxiliary head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

from leansplit.errors import UserError, require_choice
from leansplit.federated.config import (
    CLIENT_ORDERS,
    ClientOrder,
    LocalStepsConfig,
    NoisedConfig,
    require_at_least_one,
)
from leansplit.federated.optimizers import OptimizerConfig
from leansplit.models import AuxiliaryConfig
from leansplit.zeroth_order import ZerothOrderConfig

ServerMode = Literal["sequential", "averaged", "summed"]
SERVER_MODES: Final[tuple[str, ...]] = get_args(ServerMode)


@dataclass(frozen=True, kw_only=True)
class AuxiliaryMethodConfig(LocalStepsConfig, NoisedConfig):
    """Methods whose clients take all steps of a round by themselves and upload some batches."""

    needs_one_smashed_shape: ClassVar[bool] = True

    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    """The head that stands in for the server at the client."""
    upload_period: int = 1
    """k: the client uploads smashed data and labels at its local steps 1, k + 1, 2 k + 1, ... of
    every round; 1 to ``local_steps``. The count starts anew in every round."""
    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Each client's own optimizer. ``round``: fresh every round; ``run``: a client keeps its
    moments from one participation to the next."""
    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server model's optimizer (``averaged``: of each replica, moments averaged as well)."""
    server_mode: ServerMode = "sequential"
    """``sequential``: one step for each upload, one server model; ``averaged``: one replica for
    each client, averaged at the end of the round; ``summed``: one step for each upload of the
    round on the sum of the clients' mean gradients."""
    client_order: ClientOrder = "interleaved"
    """``interleaved``: the server takes the first upload of every client, then the second;
    ``sequential``: all uploads of a client, then the next client. One exchange a round either way;
    no difference for ``averaged`` and ``summed``."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_at_least_one(self, "upload_period")
        if self.upload_period > self.local_steps:
            raise UserError(
                f"upload_period {self.upload_period} is above local_steps {self.local_steps}: the "
                "count starts anew in every round, so a longer period changes nothing; choose at "
                f"most {self.local_steps}, or more local steps"
            )
        require_choice("server mode", self.server_mode, SERVER_MODES)
        require_choice("client order", self.client_order, CLIENT_ORDERS)

    @property
    def upload_steps(self) -> range:
        """The local steps, 0-based, whose batches are uploaded."""
        return range(0, self.local_steps, self.upload_period)


@dataclass(frozen=True, kw_only=True)
class LocalLossConfig(AuxiliaryMethodConfig):
    """Methods whose clients train against their own loss, and whose heads are averaged."""

    frozen_client: bool = False
    """The control: the client model keeps its initial weights and runs in evaluation mode, only
    the auxiliary head is trained. Clients are sent the client model once."""


@dataclass(frozen=True, kw_only=True)
class CSEFSLConfig(LocalLossConfig):
    """CSE-FSL (arXiv 2507.15816): first-order clients with a local loss."""


@dataclass(frozen=True, kw_only=True)
class HeronSFLConfig(LocalLossConfig):
    """HERON-SFL (arXiv 2601.09076): zeroth-order clients with a local loss."""

    zeroth_order: ZerothOrderConfig = ZerothOrderConfig(num_perturbations=1)
    """How clients probe: P, mu, estimator, distribution. One direction, as in the paper's Eq. 2;
    the paper does not disclose P and mu."""


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """How FSL-SAGE's server teaches a client's auxiliary head to imitate its gradients."""

    period: int = 10
    """l: rounds between two alignments of a client's head; the first comes as soon as the server
    holds data of the client."""
    epochs: int = 100
    """Passes over the client's buffer in an alignment."""
    batch_size: int = 1000
    """Samples of an alignment step."""
    max_samples: int = 1000
    """Samples that the server keeps of each client, the newest."""

    def __post_init__(self) -> None:
        """Refuse values that no alignment can be run with."""
        require_at_least_one(self, "period", "epochs", "batch_size", "max_samples")


@dataclass(frozen=True, kw_only=True)
class FSLSAGEConfig(AuxiliaryMethodConfig):
    """FSL-SAGE (arXiv 2505.23182, ICML 2025): an auxiliary head that imitates the cut gradient."""

    alignment: AlignmentConfig = AlignmentConfig()
    """When and on what auxiliary heads are aligned."""
    alignment_optimizer: OptimizerConfig = OptimizerConfig(name="adamw", lr=1e-3, lifetime="round")
    """Optimizer of an auxiliary head at the server. ``round``: fresh at every alignment; ``run``:
    its moments are kept from one alignment of a client's head to the next."""
