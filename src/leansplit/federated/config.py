"""Configurations of the methods: reference loops, strategies, clients and commands share them.

A method's configuration class is the only place that says which settings it has. The command line
derives its keys from the class (:mod:`leansplit.server_app.config`), and the plan carries it to
clients whole (:mod:`leansplit.wire.plan`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from leansplit.errors import UserError, require_choice
from leansplit.federated.optimizers import OptimizerConfig
from leansplit.zeroth_order import ZerothOrderConfig

ClientOrder = Literal["interleaved", "sequential"]
CLIENT_ORDERS: Final[tuple[str, ...]] = get_args(ClientOrder)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """What every method needs."""

    types: ClassVar[dict[str, type[MethodConfig]]] = {}
    """Class name -> class, of every method's configuration."""

    needs_smashed_shape: ClassVar[bool] = False
    """Whether clients report the shape of their smashed data at set-up."""

    cohort_size: int
    """K, clients that take part in a round."""
    batch_size: int = 8
    """Samples of a client's batch; a client with fewer uses all it has."""
    root_seed: int = 0
    """Every random draw of the run derives from it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the class known by its name."""
        super().__init_subclass__(**kwargs)
        MethodConfig.types[cls.__name__] = cls

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        require_at_least_one(self, "cohort_size", "batch_size")

    def to_dict(self) -> dict[str, Any]:
        """Return the class name under ``type``, and all fields as nested plain values."""
        return {"type": type(self).__name__} | dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> MethodConfig:
        """Read :meth:`to_dict`.

        Raises:
            UserError: for a class that this process does not know, or values that do not fit.
        """
        fields = dict(values)
        name = str(fields.pop("type", ""))
        config_type = MethodConfig.types[require_choice("configuration", name, MethodConfig.types)]
        unknown = fields.keys() - {field.name for field in dataclasses.fields(config_type)}
        if unknown:
            raise UserError(f"{name} has no fields {sorted(unknown)}; update the older side")
        try:
            config: MethodConfig = TypeAdapter(config_type).validate_python(fields)
        except ValidationError as error:
            raise UserError(f"{name} cannot be read: {error.errors()[0]['msg']}") from error
        return config


def require_at_least_one(config: object, *names: str) -> None:
    """Raise ``UserError`` if one of the named fields is below one."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class ReplicatedConfig(MethodConfig):
    """Methods whose clients all hold the same replica, rebuilt from seeds and scalars."""

    zeroth_order: ZerothOrderConfig = ZerothOrderConfig()
    """How clients probe: P, mu, estimator, distribution."""
    client_optimizer: OptimizerConfig = OptimizerConfig()
    """One optimizer, replayed identically by every client and the server's mirror."""


@dataclass(frozen=True, kw_only=True)
class LocalStepsConfig(MethodConfig):
    """Methods whose clients may take several steps in a round."""

    local_steps: int = 1
    """Batches that a client trains on in a round."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_at_least_one(self, "local_steps")


@dataclass(frozen=True, kw_only=True)
class HOSFLConfig(ReplicatedConfig):
    """HO-SFL (arXiv 2603.14773)."""

    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server's optimizer; one step a round on the cohort's mean gradient."""
    paper_code_scaling: bool = False
    """Scale the smashed gradient by the client's weight (1/K) as the authors' released code does,
    where the paper's mean has no such factor: the client update shrinks by K. AdamW hides it."""


@dataclass(frozen=True, kw_only=True)
class SplitFedConfig(LocalStepsConfig):
    """Split federated learning, SFLV1 and SFLV2 (Thapa et al., AAAI 2022)."""

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


@dataclass(frozen=True, kw_only=True)
class FedAvgConfig(LocalStepsConfig):
    """FedAvg (McMahan et al., AISTATS 2017): the whole model is trained at the client."""

    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Each client's own optimizer; ``run`` keeps its moments at the client."""


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(MethodConfig):
    """The control: the client model never changes, only the server trains."""

    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server's optimizer; one step a round on the cohort's mean gradient."""
