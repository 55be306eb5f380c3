"""Configurations of the methods: reference loops, strategies, clients and commands share them.

A method's configuration class is the only place that says which settings it has. The command line
derives its keys from the class (:mod:`leansplit.server_app.config`), and the plan carries it to
clients whole (:mod:`leansplit.wire.plan`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, get_args

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from leansplit.errors import UserError, require_choice
from leansplit.federated.attendance import CATCH_UPS, CatchUp
from leansplit.federated.optimizers import OptimizerConfig
from leansplit.federated.presence import Presence
from leansplit.federated.privacy import PrivacyConfig, clipped, clipped_smashed_data
from leansplit.federated.robust import RobustConfig
from leansplit.federated.sampling import require_cohort, sample_cohort
from leansplit.noise import NO_INDEX, derive_seed
from leansplit.zeroth_order import ProbedSmashedData, ZerothOrderConfig

ClientOrder = Literal["interleaved", "sequential"]
CLIENT_ORDERS: Final[tuple[str, ...]] = get_args(ClientOrder)
ClientBackward = Literal["full", "recompute"]
CLIENT_BACKWARDS: Final[tuple[str, ...]] = get_args(ClientBackward)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """What every method needs."""

    types: ClassVar[dict[str, type[MethodConfig]]] = {}
    """Class name -> class, of every method's configuration."""

    needs_one_smashed_shape: ClassVar[bool] = False
    """Whether samples of all clients must have smashed data of one shape: their batches are
    joined, or a head is built for them."""

    cohort_size: int
    """K, clients that take part in a round."""
    batch_size: int = 8
    """Samples of a client's batch; a client with fewer uses all it has."""
    root_seed: int = 0
    """Every random draw of the run derives from it."""
    presence: Presence = Presence()
    """Who can take part, from the run's fleet: what the server knows and clients are not sent."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the class known by its name."""
        super().__init_subclass__(**kwargs)
        MethodConfig.types[cls.__name__] = cls

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        require_at_least_one(self, "cohort_size", "batch_size")
        zeroth_order = getattr(self, "zeroth_order", None)
        if zeroth_order and zeroth_order.seed_pool and not isinstance(self, ReplicatedConfig):
            raise UserError("probe.seed_pool needs a method whose clients share directions")

    def to_dict(self) -> dict[str, Any]:
        """Return the class name under ``type``, and what clients know as nested plain values."""
        values = dataclasses.asdict(self)
        del values["presence"]
        return {"type": type(self).__name__} | values

    def those_there(self, round: int, population: Collection[int]) -> list[int]:
        """Return the clients that can take part in ``round``, ascending.

        Raises:
            UserError: if the cohort is larger than the whole population.
        """
        require_cohort(self.cohort_size, len(population))
        return self.presence.those_there(self.root_seed, round, population)

    def sample_cohort(self, round: int, population: Collection[int]) -> list[int]:
        """Return the clients that take part in ``round``, ascending: K of those that are there.

        All of them if there are fewer; nobody may be there. Errors as :meth:`those_there`.
        """
        there = self.those_there(round, population)
        size = min(self.cohort_size, len(there))
        return sample_cohort(self.root_seed, round, there, size) if there else []

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
class AggregatedConfig(MethodConfig):
    """Methods whose server makes one answer of its clients' scalars or weights."""

    robust: RobustConfig = RobustConfig()
    """How: the mean, or a rule that bounds what hostile clients can do."""

    def __post_init__(self) -> None:
        """Refuse a rule that no cohort is large enough for."""
        super().__post_init__()
        self.robust.require_enough(self.cohort_size)


@dataclass(frozen=True, kw_only=True)
class NoisedConfig(MethodConfig):
    """Methods whose clients can clip and noise what they upload: smashed data, scalars, or both."""

    uploads_smashed_data: ClassVar[bool] = True
    """Whether clients upload smashed data, and labels with them."""
    uploads_scalars: ClassVar[bool] = False
    """Whether clients upload scalars."""
    weights_tell_more: ClassVar[bool] = True
    """Whether weights that clients upload depend on their samples by more than what they uploaded
    before: false where the server could compute them itself."""

    privacy: PrivacyConfig = PrivacyConfig()
    """Clipping and noise; neither unless set."""

    def __post_init__(self) -> None:
        """Refuse noise on what is never uploaded."""
        super().__post_init__()
        for clip, kind in (("clip", "smashed data"), ("scalar_clip", "scalars")):
            if getattr(self.privacy, clip) and not self.reads_privacy(clip):
                raise UserError(
                    f"privacy.{clip} has nothing to clip: clients of this method upload no {kind}; "
                    "remove it"
                )

    @classmethod
    def reads_privacy(cls, name: str) -> bool:
        """Return whether clients upload what the field ``name`` of ``privacy`` is about."""
        if name in ("clip", "noise"):
            return cls.uploads_smashed_data
        return cls.uploads_scalars or not name.startswith("scalar_")

    @property
    def releases(self) -> int:
        """Smashed data of one sample that one upload holds, each clipped and noised by itself."""
        return 1

    def released_smashed_data(
        self,
        z: Tensor,
        round: int,
        client_id: int,
        upload: int,
        *,
        has_mask: bool = False,
        probe: int = NO_INDEX,
    ) -> Tensor:
        """Return what a client uploads in place of z.

        Args:
            z: smashed data, shape [B, ...].
            round: 1-based.
            client_id: whose they are.
            upload: which of the client's uploads of the round.
            has_mask: whether z has an attention mask in it.
            probe: which of the perturbed ones; by default none of them.
        """
        seed = derive_seed(
            self.root_seed,
            "smashed-data-noise",
            round=round,
            client_id=client_id,
            local_step=upload,
            direction=probe,
        )
        given = self.privacy
        secret = seed if given.reproducible else None
        return clipped_smashed_data(z, given.clip, given.noise, secret, has_mask=has_mask)

    def released_probes(
        self,
        probed: ProbedSmashedData,
        round: int,
        client_id: int,
        upload: int,
        *,
        has_mask: bool = False,
    ) -> ProbedSmashedData:
        """Return what a client uploads in place of z at and around theta_c.

        Noise of their own on all of them: the difference of two with the same noise would have
        none.
        """

        def release(z: Tensor, probe: int = NO_INDEX) -> Tensor:
            return self.released_smashed_data(
                z, round, client_id, upload, has_mask=has_mask, probe=probe
            )

        def each(stack: Tensor, first: int) -> Tensor:
            kept = [release(z, first + p) for p, z in enumerate(stack)]
            return torch.stack(kept) if kept else stack

        return ProbedSmashedData(
            release(probed.anchor) if len(probed.anchor) else probed.anchor,
            each(probed.plus, 0),
            each(probed.minus, len(probed.plus)),
        )

    def released_scalars(self, scalars: Tensor, round: int, client_id: int) -> Tensor:
        """Return what a client uploads in place of its scalars of a round, all of them one row.

        Args:
            scalars: of any shape, such as [P], or [H, P] of H local steps.
            round: 1-based.
            client_id: whose they are.
        """
        seed = derive_seed(self.root_seed, "scalar-noise", round=round, client_id=client_id)
        given = self.privacy
        secret = seed if given.reproducible else None
        return clipped(scalars[None], given.scalar_clip, given.scalar_noise, secret)[0]


@dataclass(frozen=True, kw_only=True)
class ReplicatedConfig(AggregatedConfig):
    """Methods whose clients all hold the same replica, rebuilt from seeds and scalars."""

    zeroth_order: ZerothOrderConfig = ZerothOrderConfig()
    """How clients probe: P, mu, estimator, distribution."""
    client_optimizer: OptimizerConfig = OptimizerConfig()
    """One optimizer, replayed identically by every client and the server's mirror."""
    catch_up: CatchUp = "auto"
    """What a client that missed rounds is sent: their seeds and scalars (``log``), the model and
    its moments (``snapshot``), or whichever takes fewer bytes (``auto``). The same model."""

    def __post_init__(self) -> None:
        """Refuse ways to catch up that do not exist."""
        super().__post_init__()
        require_choice("catch_up", self.catch_up, CATCH_UPS)


@dataclass(frozen=True, kw_only=True)
class LocalStepsConfig(AggregatedConfig):
    """Methods whose clients may take several steps in a round."""

    local_steps: int = 1
    """Batches that a client trains on in a round."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_at_least_one(self, "local_steps")


def _require_micro_batch(size: int) -> None:
    if size < 0:
        raise UserError(f"micro_batch must be at least 0, got {size}")


@dataclass(frozen=True, kw_only=True)
class HOSFLConfig(ReplicatedConfig, NoisedConfig):
    """HO-SFL (arXiv 2603.14773)."""

    needs_one_smashed_shape: ClassVar[bool] = True
    uploads_scalars: ClassVar[bool] = True

    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server's optimizer; one step a round on the cohort's mean gradient."""
    paper_code_scaling: bool = False
    """Scale the smashed gradient by the client's weight (1/K) as the authors' released code does,
    where the paper's mean has no such factor: the client update shrinks by K. AdamW hides it."""
    micro_batch: int = 0
    """Samples that a client runs forward at once, to make z and to probe; 0 = the whole batch. In
    parts it holds the activations of few, beside z and the smashed gradient."""
    probe_ahead: bool = False
    """Upload the smashed data of all probes with z, so that a round takes one exchange and not two:
    the server compares them with lambda. The same model; no gradient down, more smashed data up."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        _require_micro_batch(self.micro_batch)
        if self.probe_ahead and self.privacy.is_on:
            raise UserError(
                "with probe_ahead the scalars are differences of noisy smashed data, which the "
                "noise, divided by probe.perturbation_scale, drowns; leave out probe_ahead or "
                "privacy.…"
            )


@dataclass(frozen=True, kw_only=True)
class SplitFedConfig(LocalStepsConfig, NoisedConfig):
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
    client_backward: ClientBackward = "full"
    """``full``: the graph of a client's forward pass is kept until lambda arrives; ``recompute``:
    layer by layer from the input, near the memory of inference, for some more forward passes."""
    micro_batch: int = 0
    """Samples that a recomputing client holds activations of at once; 0 = the whole batch."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_choice("client order", self.client_order, CLIENT_ORDERS)
        require_choice("client backward", self.client_backward, CLIENT_BACKWARDS)
        _require_micro_batch(self.micro_batch)
        if self.micro_batch and self.client_backward == "full":
            raise UserError("micro_batch needs client_backward = recompute")


@dataclass(frozen=True, kw_only=True)
class FedAvgConfig(LocalStepsConfig):
    """FedAvg (McMahan et al., AISTATS 2017): the whole model is trained at the client."""

    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Each client's own optimizer; ``run`` keeps its moments at the client."""


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(NoisedConfig):
    """The control: the client model never changes, only the server trains."""

    needs_one_smashed_shape: ClassVar[bool] = True

    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server's optimizer; one step a round on the cohort's mean gradient."""
    features_once: bool = False
    """A client uploads the smashed data of all its samples at its first participation, and
    nothing ever again: the server keeps them and draws the same batches itself."""


@dataclass(frozen=True, kw_only=True)
class HOSLConfig(ReplicatedConfig, NoisedConfig):
    """HOSL (arXiv 2601.10940)."""

    needs_one_smashed_shape: ClassVar[bool] = True

    zeroth_order: ZerothOrderConfig = ZerothOrderConfig(num_perturbations=10, estimator="central")
    """How the end-to-end loss is probed; the paper's Q is P. ``central`` uploads 2 P perturbed
    smashed data for each batch, ``forward`` P."""
    server_optimizer: OptimizerConfig = OptimizerConfig()
    """The server's optimizer; one step a round, after the probes."""

    @property
    def releases(self) -> int:
        """Smashed data at the weights, and at every perturbed ones."""
        sides = 2 if self.zeroth_order.estimator == "central" else 1
        return 1 + sides * self.zeroth_order.num_perturbations


@dataclass(frozen=True, kw_only=True)
class DeComFLConfig(LocalStepsConfig, ReplicatedConfig, NoisedConfig):
    """DeComFL (ICLR 2025): zeroth-order federated learning in which only scalars cross."""

    uploads_smashed_data: ClassVar[bool] = False
    uploads_scalars: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FedZOConfig(LocalStepsConfig):
    """FedZO (arXiv 2201.09531): FedAvg whose local steps are zeroth-order."""

    local_steps: int = 5
    """H, batches that a client trains on in a round."""
    zeroth_order: ZerothOrderConfig = ZerothOrderConfig(num_perturbations=20, direction="sphere")
    """How clients probe their own loss; the paper's b2 is P."""
    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """Each client's own optimizer; ``run`` keeps its moments at the client."""
