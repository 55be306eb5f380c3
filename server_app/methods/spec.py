"""What commands, comparisons and tests know about a method, and the table of all methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, get_type_hints

from torch import Tensor, nn

from leansplit.costs import ClientStep, SplitShape, Traffic
from leansplit.errors import UserError
from leansplit.federated import ClientData, MethodConfig, NoisedConfig, ReplicatedConfig
from leansplit.first_order import Loss
from leansplit.hybrid_order import BoundaryGroup
from leansplit.models import SplitModel
from leansplit.strategies.running import RunningStrategy

SHARED_FIELDS: Mapping[str, str] = {
    "cohort": "cohort_size",
    "batch_size": "batch_size",
    "seed": "root_seed",
}
"""Key of a run -> the field of every method's configuration that it sets."""

SECTIONS: Mapping[str, str] = {
    "client": "client_optimizer",
    "server": "server_optimizer",
    "probe": "zeroth_order",
    "robust": "robust",
    "privacy": "privacy",
}
"""Section of keys -> the field that it sets, of the methods that have it."""


def _as_given(
    config: MethodConfig, model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor
) -> MethodConfig:
    return config


def _all_alike(config: MethodConfig, model: SplitModel, num_clients: int) -> tuple[int, ...]:
    return ()


def _all_samples(
    config: MethodConfig, shape: SplitShape, attendance: Sequence[Set[int]], samples: int
) -> int:
    return samples


def _one_each_round(config: MethodConfig, attendance: Sequence[Set[int]]) -> int:
    return len(attendance)


def _uniform_cohort(
    config: MethodConfig, shape: SplitShape, population: Sequence[int], round: int
) -> list[int]:
    return config.sample_cohort(round, population)


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One method: a row of the conformance suite, of ``leansplit methods``, of every table."""

    name: str
    """Name on the command line."""
    title: str
    """Name in tables and plots."""
    description: str
    """One line."""
    source: str
    """The paper."""
    is_split: bool = True
    """Whether what a client computes depends on where the model is cut."""
    client_order: str
    """What a client computes: ``zeroth``, ``first``, ``hybrid`` or ``none``."""
    averages_weights: bool
    """Whether models are averaged, which running batch statistics would not survive."""
    one_client_per_node: bool = False
    """Whether a SuperNode may host one client only."""
    reports_estimates: bool = False
    """Whether the strategy reports its gradient estimates, which is what telemetry measures; those
    of all zeroth-order methods here do."""
    config_type: type[MethodConfig]
    """The method's settings; the keys that it takes and their defaults are read off this class."""
    strategy: Callable[..., RunningStrategy]
    """(model, loss, config, **options) -> strategy."""
    reference: Callable[..., object]
    """The plain loop: (model, loss, clients, config, num_rounds, after_round)."""
    client_passes: Callable[[Any], tuple[float, float]]
    """config -> (forward, backward) passes of a client for each sample it processes."""
    client_replays: Callable[[Any, nn.Module], float] = lambda config, client_model: 0.0
    """(config, client model) -> forward passes for each sample that a client repeats to save
    memory, beside ``client_passes``."""
    traffic: Callable[[Any, SplitShape, Sequence[Set[int]], int], Traffic]
    """(config, sizes, attendance, samples) -> the closed formula that the ledger is held to."""
    samples_forwarded: Callable[[Any, SplitShape, Sequence[Set[int]], int], int] = _all_samples
    """(config, sizes, attendance, samples) -> samples that ``client_passes`` are counted for, as
    :attr:`RunningStrategy.samples_forwarded`."""
    auxiliary_elements: Callable[[Any, SplitModel, Tensor], int] = lambda *_: 0
    """(config, model, z of one sample [1, ...]) -> d_a, for the sizes that traffic depends on."""
    round_trips: Callable[[Any, Sequence[Set[int]]], int] = _one_each_round
    """(config, attendance) -> times that the server sends something and waits for answers, without
    the set-up; rounds in which nobody took part are left out of the attendance."""
    client_step: Callable[[Any, SplitModel, Loss, Tensor, Tensor], ClientStep]
    """(config, model, loss, inputs, labels) -> one step of a client, to be measured."""
    settle: Callable[[Any, SplitModel, Loss, Tensor, Tensor], MethodConfig] = _as_given
    """(config, model, loss, inputs, labels) -> config, with settings read off the model and a batch
    of full size where it asks for that. Everything else takes settled configurations."""
    zeroth_elements: Callable[[Any, SplitModel, int], tuple[int, ...]] = _all_alike
    """(config, model, clients) -> ``SplitShape.zeroth_elements``."""
    boundaries: Callable[[Any, SplitModel, int], tuple[BoundaryGroup, ...]] = lambda *_: ()
    """(config, model, clients) -> who trains how much of the model by zeroth order, for methods
    whose clients differ in that."""
    boundary_step: Callable[[Any, SplitModel, Loss, Tensor, Tensor, str], ClientStep] | None = None
    """(config, model, loss, inputs, labels, boundary) -> one step of a client at that boundary, of
    methods that have ``boundaries``."""
    clients_alone: Callable[[Any, SplitModel, Sequence[ClientData], Any], nn.Module | None] = (
        lambda *_: None
    )
    """(config, model, clients, what the plain loop returned) -> what clients could use without the
    server, as :meth:`RunningStrategy.clients_alone`."""
    cohort: Callable[[Any, SplitShape, Sequence[int], int], list[int]] = _uniform_cohort
    """(config, sizes, population, round) -> the clients that take part, ascending."""

    def is_sequential(self, config: MethodConfig) -> bool:
        """Say whether the clients of a round work one after the other."""
        return self.round_trips(config, [{0, 1}]) > self.round_trips(config, [{0}])

    def client_round_trips(self, config: MethodConfig) -> int:
        """Return the round trips of one more participation of a client that was there before."""
        return self.round_trips(config, [{0}] * 3) - self.round_trips(config, [{0}] * 2)

    def recorded_config(self, config: Mapping[str, Any]) -> MethodConfig:
        """Return the settings of a run whose configuration is read back from its results.

        Raises:
            UserError: if they are those of another version.
        """
        sections = {key: field for key, field in SECTIONS.items() if field in self.fields}
        keys = {**SHARED_FIELDS, **sections}
        given = {field: config[key] for key, field in keys.items() if key in config}
        options = config.get("options", {})
        return MethodConfig.from_dict({"type": self.config_type.__name__, **given, **options})

    @cached_property  # every key of every run is looked up in these
    def fields(self) -> Mapping[str, Any]:
        """Field of the configuration -> its type."""
        names = {field.name for field in dataclasses.fields(self.config_type)}
        hints = get_type_hints(self.config_type).items()
        return MappingProxyType({name: kind for name, kind in hints if name in names})

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The method's own settings -> their types: fields that no shared key sets."""
        taken = {*SHARED_FIELDS.values(), *SECTIONS.values(), "presence"}
        fields = self.fields.items()
        return MappingProxyType({name: kind for name, kind in fields if name not in taken})

    def default(self, field: str) -> Any:
        """Return a field's default value."""
        [found] = [f for f in dataclasses.fields(self.config_type) if f.name == field]
        if found.default_factory is not dataclasses.MISSING:
            return found.default_factory()
        return found.default


_methods: dict[str, MethodSpec] = {}
METHODS: Mapping[str, MethodSpec] = MappingProxyType(_methods)
"""Name -> method, in the order in which methods are listed."""


def register_method(spec: MethodSpec) -> MethodSpec:
    """Add a method to ``METHODS``.

    Raises:
        UserError: if the name is taken.
    """
    if spec.name in _methods:
        raise UserError(f"a method named {spec.name!r} is registered already; choose another name")
    _methods[spec.name] = spec
    return spec


def is_used(method: str, key: str) -> bool:
    """Say whether ``method`` reads the configuration key ``key``, or no method does."""
    spec = METHODS[method]
    name = key.partition(".")[0]
    if key == "probe.seed_pool":
        return issubclass(spec.config_type, ReplicatedConfig)
    if name == "privacy":
        return issubclass(spec.config_type, NoisedConfig) and spec.config_type.reads_privacy(
            key.partition(".")[2]
        )
    if name in SECTIONS:
        return SECTIONS[name] in spec.fields
    if name == "telemetry_every":
        return spec.reports_estimates
    is_option = any(name in other.options for other in METHODS.values())
    return name in spec.options or not is_option


def why_unused(method: str, key: str) -> str:
    """Say why ``method`` does not read ``key``, and what to do about it."""
    if key == "telemetry_every":
        reporting = ", ".join(name for name, spec in METHODS.items() if spec.reports_estimates)
        return (
            f"{method} reports no gradient estimates, so {key!r} has nothing to measure; remove "
            f"it, or take one of {reporting}"
        )
    if key.partition(".")[0] == "privacy":
        able = ", ".join(name for name in METHODS if is_used(name, key))
        kind = "scalars" if ".scalar_" in key else "smashed data"
        return (
            f"clients of {method} upload no {kind} that could be noised, so {key!r} would protect "
            f"nothing; take one of {able}"
        )
    return f"{method} does not use {key!r}; remove it"
