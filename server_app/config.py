"""A run's configuration: typed, flat, checked before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter

from leansplit.clients.partition import PartitionConfig, PartitionKind
from leansplit.costs.fleet import PRESETS, FleetConfig
from leansplit.errors import (
    UserError,
    did_you_mean,
    require_choice,
    require_positive,
    section_named,
)
from leansplit.federated import (
    AttackConfig,
    FaultsConfig,
    MethodConfig,
    OptimizerConfig,
    PrivacyConfig,
    RobustConfig,
    require_cohort,
)
from leansplit.models import MODELS, weights_digest
from leansplit.server_app.budget import Budget
from leansplit.server_app.key_values import flatten, literal, typed
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.methods.spec import SECTIONS, SHARED_FIELDS, why_unused
from leansplit.strategies.failures import Quorum
from leansplit.tasks import TASKS
from leansplit.tasks.workload import EvaluateOn, WorkloadConfig, default_cut_layer, default_model
from leansplit.wire import ReplicaStorage
from leansplit.zeroth_order import JointPassesMode, ZerothOrderConfig

_NUM_EVALUATIONS = 20


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does. Keys of sections are written ``section.key``."""

    method: str
    """Name of the method; ``leansplit methods`` lists them."""
    task: str = "digits"
    """Name of the task; ``leansplit tasks`` lists them."""
    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of the task, such as ``task_options.data_path``."""
    model: str = ""
    """Name of the model; empty = the task's default."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Options of the model, such as ``model_options.norm``."""
    cut_layer: str = ""
    """Name of the last client-side layer; empty = the model's default."""
    initial_weights: str = ""
    """A safetensors file with the whole model's weights to start from, such as the
    ``model.safetensors`` of an earlier run; empty = drawn from the seed."""
    initial_weights_digest: str = ""
    """Of that file's content; found out, not given, so that other weights are another run."""
    clients: int = 100
    """N, virtual clients in all."""
    cohort: int = 20
    """K, clients that take part in a round."""
    rounds: int = 300
    """T, the most rounds that the run takes."""
    samples: int = 0
    """Budget: the run ends with the first round that reaches it; 0 = no such budget."""
    megabytes: float = 0.0
    """Budget of traffic, both directions, MB = 1e6 bytes: the run ends with the first round that
    reaches it; 0 = no such budget."""
    target_accuracy: float = 0.0
    """The run ends at the first evaluation at or above this fraction; 0 = no target."""
    batch_size: int = 8
    """Samples of a client's batch."""
    seed: int = 0
    """Root seed: initial weights, partition, cohorts, batches, perturbations."""
    partition: PartitionKind = "iid"
    """How training data are spread: ``iid``, ``dirichlet`` or ``pathological``."""
    alpha: float = 0.5
    """Dirichlet concentration: the smaller the more skewed."""
    classes_per_client: int = 2
    """Classes that a client holds under ``pathological``."""
    min_samples: int = 1
    """Fewest samples that a client may hold."""
    client: OptimizerConfig = OptimizerConfig()
    """Optimizer of the client model: ``client.name``, ``client.lr``, …"""
    server: OptimizerConfig = OptimizerConfig()
    """Optimizer of the server model: ``server.name``, ``server.lr``, …"""
    probe: ZerothOrderConfig = ZerothOrderConfig()
    """Zeroth-order estimate: ``probe.num_perturbations``, …"""
    robust: RobustConfig = RobustConfig()
    """What the server makes of its clients' answers: ``robust.rule``, … (docs/faults.md)"""
    privacy: PrivacyConfig = PrivacyConfig()
    """What clients do to smashed data and scalars first: ``privacy.clip``, … (docs/audit.md)"""
    options: dict[str, Any] = field(default_factory=dict)
    """The method's own settings by name, such as ``local_steps``; `leansplit keys METHOD` lists
    them. In files and with ``--set`` they are keys like all others."""
    fleet: FleetConfig = FleetConfig()
    """Devices and networks of the clients: ``fleet.profile``, …"""
    fleet_digest: str = ""
    """Of the content of a table of devices; found out, not given."""
    evaluate_every: int = 0
    """Rounds between evaluations; 0 = about twenty in the run."""
    telemetry_every: int = 0
    """Rounds between measurements of zeroth-order estimates against the true gradient of what
    was probed (simulations only; docs/telemetry.md); 0 = none."""
    evaluate_on: EvaluateOn = "test"
    """``validation``: hold out a fifth of the training data and evaluate on that (for tuning)."""
    evaluation_batch_size: int = 500
    """Test samples evaluated at once."""
    generated_texts: int = 100
    """Different test prompts that the final model continues, for BLEU and ROUGE-L, where the task
    is to write text; 0 = none."""
    workers: int = 0
    """Ray worker processes; 0 = one for each core; -1 = no Ray, everything in this process."""
    ray_address: str = ""
    """Head node of a Ray cluster that is there already, HOST:PORT; its nodes are the workers
    (docs/scale-out.md). Neither recorded nor part of what makes a run another run."""
    clients_per_node: int | Literal["auto"] = 1
    """Virtual clients that one SuperNode hosts; ``auto``: all that each worker can have, where that
    changes no result (docs/performance.md)."""
    num_threads: int = 1
    """Torch threads of each computation; results are bit-equal only for equal numbers."""
    client_device: str = "cpu"
    """Where clients compute, such as ``cuda``; workers share GPUs (docs/scale-out.md)."""
    replica_storage: ReplicaStorage = "context"
    """``context``: each client keeps its own replica; ``worker``: one for each worker process
    (simulations only; the leansplit command's default)."""
    joint_passes: JointPassesMode = "auto"
    """Batches of several clients in one forward pass: ``auto`` where the bits are the same and time
    is saved, ``on`` wherever possible, to rounding, ``off`` nowhere (docs/performance.md)."""
    exchange_timeout_s: float = 600.0
    """Clients that take longer than this to answer are dropped from the step."""
    max_reply_mb: float = 1024.0
    """Longer answers of a client are dropped unread, MB = 1e6 bytes."""
    quorum: float = 0.0
    """Share of the clients asked that must answer for a round to count (docs/faults.md); one must
    in any case."""
    quorum_rounds: int = 3
    """Rounds in a row without a quorum that end the run."""
    faults: FaultsConfig = FaultsConfig()
    """Faults that the run injects into itself: ``faults.drop``, … (docs/faults.md)"""
    attack: AttackConfig = AttackConfig()
    """Hostile clients that the run injects into itself: ``attack.kind``, … (docs/faults.md)"""
    checkpoint_every: int = 0
    """Rounds between checkpoints, from which the run can go on (docs/resuming.md); 0 = none."""
    checkpoint_seconds: float = 0.0
    """Seconds between checkpoints, written when a round ends; 0 = none."""
    checkpoint_keep: int = 2
    """Checkpoints that are kept, the newest."""
    out: str = ""
    """Absolute folder for results of ``flwr run``; the leansplit command has its own option."""

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        require_choice("method", self.method, METHODS)
        require_choice("task", self.task, TASKS)
        model = self.model or default_model(self.task)
        if model not in MODELS and MODELS[default_model(self.task)].takes == "tokens":
            # A language model by its name on the hub, or by its folder.
            if (source := self.model_options.get("source", model)) != model:
                raise UserError(
                    f"model is {model!r} and model_options.source is {source!r}; name one model"
                )
            options = {**self.model_options, "source": model}
            object.__setattr__(self, "model_options", options)
            model = default_model(self.task)
        require_choice("model", model, MODELS)
        object.__setattr__(self, "model", model)
        source = self.model_options.get("source", "")
        if "tokenizer" in TASKS[self.task].options and not source.lstrip().startswith("{"):
            object.__setattr__(self, "task_options", {"tokenizer": source, **self.task_options})
        object.__setattr__(self, "cut_layer", self.cut_layer or default_cut_layer(model))
        if self.initial_weights:
            digest = weights_digest(self.initial_weights)
            object.__setattr__(self, "initial_weights_digest", digest)
        object.__setattr__(self, "fleet_digest", self.fleet.digest())
        counts = ["clients", "cohort", "batch_size", "evaluation_batch_size"]
        counts += ["clients_per_node"] * (self.clients_per_node != "auto")
        lowest_allowed = dict.fromkeys((*counts, "num_threads", "checkpoint_keep"), 1) | {
            "generated_texts": 0,
            "evaluate_every": 0,
            "telemetry_every": 0,
            "checkpoint_every": 0,
            "checkpoint_seconds": 0,
            "workers": -1,
        }
        for name, lowest in lowest_allowed.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.ray_address and self.workers:
            raise UserError(
                f"workers must be 0 with ray_address, got {self.workers}: there are as many as the "
                "cluster has CPUs"
            )
        require_cohort(self.cohort, self.clients)
        require_positive("exchange_timeout_s", self.exchange_timeout_s)
        require_positive("max_reply_mb", self.max_reply_mb)
        Quorum(self.quorum, self.quorum_rounds)
        self.attack.require_somebody(self.clients)
        if self.has_checkpoints:
            self.privacy.require_repeatable()
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.fleet.profile:
            self.fleet.devices(self.clients, self.seed)
        self.budget()
        self.partition_config()
        self.method_config()

    def budget(self) -> Budget:
        """What ends the run."""
        return Budget(
            rounds=self.rounds,
            samples=self.samples,
            megabytes=self.megabytes,
            target_accuracy=self.target_accuracy,
        )

    def method_config(self) -> MethodConfig:
        """Return the settings of the method.

        Raises:
            UserError: if a setting is not allowed, or the method has no such option.
        """
        spec = METHODS[self.method]
        for option in self.options:
            if option not in spec.options:
                hint = did_you_mean(option, spec.options)
                raise UserError(f"{self.method} has no option {option!r}; {hint}")
        given = {field: getattr(self, key) for key, field in SHARED_FIELDS.items()}
        given |= {
            field: getattr(self, key) for key, field in SECTIONS.items() if field in spec.fields
        }
        return spec.config_type(**given, **self.options)

    def partition_config(self) -> PartitionConfig:
        """Return how the data are spread."""
        return PartitionConfig(
            kind=self.partition,
            alpha=self.alpha,
            classes_per_client=self.classes_per_client,
            min_samples=self.min_samples,
        )

    def workload(self) -> WorkloadConfig:
        """Return the learning problem."""
        return WorkloadConfig(
            task=self.task,
            task_options=self.task_options,
            model=self.model,
            model_options=self.model_options,
            cut_layer=self.cut_layer,
            num_clients=self.clients,
            partition=dataclasses.asdict(self.partition_config()),
            root_seed=self.seed,
            initial_weights=str(Path(self.initial_weights).expanduser().resolve())
            if self.initial_weights
            else "",
            initial_weights_digest=self.initial_weights_digest,
            evaluate_on=self.evaluate_on,
        )

    @property
    def evaluation_period(self) -> int:
        """Rounds between evaluations."""
        return self.evaluate_every or max(1, self.rounds // _NUM_EVALUATIONS)

    @property
    def has_checkpoints(self) -> bool:
        """Whether the run leaves checkpoints on its way."""
        return self.checkpoint_every > 0 or self.checkpoint_seconds > 0

    def to_dict(self) -> dict[str, Any]:
        """Return what is recorded, as nested plain values; fields of `ADDED` only if set."""
        unset = {f.name: f.default for f in dataclasses.fields(self) if f.name in ADDED}
        left_out = {name for name, default in unset.items() if getattr(self, name) == default}
        left_out.add("ray_address")  # names a host, and decides nothing
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in left_out}
        if not self.probe.seed_pool:
            del values["probe"]["seed_pool"]  # it came later, too
        return values


def run_config(method: str, settings: Mapping[str, Any]) -> RunConfig:
    """Build a configuration from flat keys such as ``{"clients": 100, "client.lr": 0.1}``.

    Nested mappings mean the same as dotted keys. Strings are read as the field's type. What is
    not given is the method's own default.

    Raises:
        UserError: for a key that does not exist (with the nearest), or a value of a wrong type.
    """
    require_choice("method", method, METHODS)
    spec = METHODS[method]
    keys = KEYS | option_keys(method)
    values: dict[str, Any] = {"method": method, "options": {}}
    taken = [name for name, field in SECTIONS.items() if field in spec.fields]
    sections: dict[str, dict[str, Any]] = {name: {} for name in (*taken, *RUN_SECTIONS)}
    for key, value in flatten(settings).items():
        name, _, rest = key.partition(".")
        if name == "method" and value == method:
            continue
        if not is_used(method, key):
            raise UserError(why_unused(method, key))
        if name in FREE_SECTIONS and rest:
            values.setdefault(name, {})[rest] = literal(value)
        elif key not in keys:
            known = [*keys, *(f"{section}.…" for section in FREE_SECTIONS)]
            raise UserError(f"unknown key {key!r}; {did_you_mean(key, known)}")
        elif rest:
            sections.setdefault(name, {})[rest] = typed(key, value, keys[key])
        elif name in spec.options:
            values["options"][name] = typed(key, value, keys[key])
        else:
            values[name] = typed(key, value, keys[key])
    for name, section in sections.items():
        default = RUN_SECTIONS.get(name) or spec.default(SECTIONS.get(name, name))
        with section_named(name, type(default)):
            settled = dataclasses.replace(default, **section)
        is_shared = name in SECTIONS or name in RUN_SECTIONS
        (values if is_shared else values["options"])[name] = settled
    return RunConfig(**values)


def fleet_config(text: str) -> FleetConfig:
    """Read a fleet such as ``mobile`` or ``devices.csv,stragglers=0.2,slowdown=5``.

    Raises:
        UserError: for a key that does not exist, or a value that does not fit.
    """
    profile, *settings = (part.strip() for part in text.split(","))
    if not profile:
        raise UserError(f"a fleet needs a profile: {', '.join(PRESETS)}, or a CSV file")
    given: dict[str, Any] = {"profile": profile}
    for setting in settings:
        name, _, value = setting.partition("=")
        key = f"fleet.{name.strip()}"
        if key not in KEYS:
            raise UserError(f"unknown key {key!r}; {did_you_mean(key, _KEYS_OF['fleet'])}")
        given[name.strip()] = typed(key, value.strip(), KEYS[key])
    with section_named("fleet", FleetConfig):
        return FleetConfig(**given)


def option_keys(method: str) -> dict[str, TypeAdapter[Any]]:
    """Return the keys of a method's own settings, with what reads their values."""
    keys: dict[str, TypeAdapter[Any]] = {}
    for name, kind in METHODS[method].options.items():
        if dataclasses.is_dataclass(kind):
            keys |= {f"{name}.{k}": TypeAdapter(t) for k, t in get_type_hints(kind).items()}
        else:
            keys[name] = TypeAdapter(kind)
    return keys


_FIELD_TYPES: dict[str, Any] = get_type_hints(RunConfig)
FREE_SECTIONS = ("task_options", "model_options")
"""Sections whose keys belong to the task or model, which checks them itself."""

NO_KEYS = ("method", "options", "initial_weights_digest", "fleet_digest")
"""Fields that are no keys: named otherwise, or found out."""

ADDED = (
    *("fleet", "fleet_digest", "robust", "faults", "attack", "privacy"),
    *("quorum", "quorum_rounds", "max_reply_mb", "joint_passes", "client_device"),
)
"""Fields that came after results were published: unset, they leave a run's hash as it was."""

RUN_SECTIONS: dict[str, Any] = {
    "fleet": FleetConfig(),
    "faults": FaultsConfig(),
    "attack": AttackConfig(),
}
"""Sections of keys that are no settings of a method -> what holds without them."""

_KEYS_OF: dict[str, dict[str, TypeAdapter[Any]]] = {
    section: {
        f"{section}.{name}": TypeAdapter(kind)
        for name, kind in get_type_hints(_FIELD_TYPES[section]).items()
    }
    for section in (*SECTIONS, *RUN_SECTIONS)
}
KEYS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind)
    for name, kind in _FIELD_TYPES.items()
    if name not in (*_KEYS_OF, *FREE_SECTIONS, *NO_KEYS)
} | {key: adapter for keys in _KEYS_OF.values() for key, adapter in keys.items()}
"""The keys that all methods share, with what reads their values; see also :func:`option_keys`."""
