"""The learning problem of a run as plain values, from which any process rebuilds it alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from leansplit.models import MODELS, SplitModel, build_model, split_at
from leansplit.noise import derive_seed
from leansplit.tasks.registry import TASKS, load_task
from leansplit.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """Task, model, cut and how the data are spread; the same values give the same bits."""

    task: str
    """Name of a registered task."""
    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of the task, such as ``data_path``."""
    model: str
    """Name of a registered model."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Options of the model."""
    cut_layer: str
    """Name of the last client-side layer."""
    num_clients: int
    """Clients that the training data are spread over."""
    partition: dict[str, Any] = field(default_factory=dict)
    """Fields of :class:`leansplit.clients.partition.PartitionConfig`."""
    root_seed: int = 0
    """Initial weights and partition derive from it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WorkloadConfig:
        """Read :meth:`to_dict`."""
        return cls(**values)

    def load_task(self) -> Task:
        """Load the data."""
        return load_task(self.task, **self.task_options)

    def build_model(self, task: Task) -> SplitModel:
        """Build the initial model from the root seed and cut it."""
        model = build_model(
            self.model,
            input_shape=task.input_shape,
            num_classes=task.num_classes,
            seed=derive_seed(self.root_seed, "model"),
            options=self.model_options,
        )
        return split_at(model, self.cut_layer)

    @property
    def partition_seed(self) -> int:
        """Seed of the draw that spreads the data."""
        return derive_seed(self.root_seed, "partition") & 0x7FFF_FFFF  # numpy's legacy range


def default_model(task: str) -> str:
    """Return the name of the model that a task uses unless told otherwise."""
    return TASKS[task].default_model


def default_cut_layer(model: str) -> str:
    """Return the cut that a model uses unless told otherwise."""
    return MODELS[model].default_cut_layer
