"""The learning problem of a run as plain values, from which any process rebuilds it alike."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from leansplit.errors import UserError
from leansplit.models import (
    MODELS,
    SplitModel,
    build_model,
    client_part,
    is_pretrained,
    load_weights_,
    split_at,
)
from leansplit.noise import derive_seed, numpy_generator
from leansplit.tasks.own_data import matched, own_options, takes_own_data
from leansplit.tasks.registry import TASKS, load_task
from leansplit.tasks.task import Task

EvaluateOn = Literal["test", "validation"]


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
    initial_weights: str = ""
    """Absolute path of a safetensors file with the whole model's weights; "" = drawn at random."""
    initial_weights_digest: str = ""
    """Of the file's content: every process must find the same."""
    evaluate_on: EvaluateOn = "test"
    """``validation``: a fifth of the training data is held out and evaluated in place of the test
    set, for choosing hyper-parameters."""
    class_names: list[str] = field(default_factory=list)
    """Of the server's data, in the order of their labels, where nodes may bring data of their own;
    a node's classes are matched by name."""
    input_shape: list[int] = field(default_factory=list)
    """Of the server's data; likewise."""
    own_data: str = ""
    """A node's own folder or file, which it sets itself: its client holds all that is there."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WorkloadConfig:
        """Read :meth:`to_dict`."""
        return cls(**values)

    def load_task(self) -> Task:
        """Load the data, a node's own where it has some; the last task loaded is kept in memory."""
        options = self.task_options
        if self.own_data:
            options = own_options(self.task, options, self.own_data)
        text = json.dumps([self.task, options, self.evaluate_on], sort_keys=True)
        task = _load_task(text)
        return matched(task, self.class_names, self.input_shape) if self.own_data else task

    def describing(self, task: Task) -> WorkloadConfig:
        """Return what a node must hold data of its own to; itself where there can be none."""
        if not takes_own_data(self.task):
            return self
        names, shape = list(task.class_names), list(task.input_shape)
        return dataclasses.replace(self, class_names=names, input_shape=shape)

    def build_client_model(self, task: Task, *, extra_blocks: int | None) -> SplitModel:
        """Build what a client needs of the model: all of it, or its own layers where that saves.

        Args:
            task: the data.
            extra_blocks: blocks above the cut that clients hold in an auxiliary head; None = the
                clients need the whole model.

        Raises:
            UserError: as :meth:`build_model`.
        """
        options = self._options(task)
        is_loaded = self.model == "language" and is_pretrained(str(options.get("source", "")))
        if extra_blocks is None or not is_loaded:
            return self.build_model(task)
        return client_part(
            self.cut_layer, task.num_classes, extra_blocks=extra_blocks, options=options
        )

    def _options(self, task: Task) -> dict[str, Any]:
        """Return the model's options: the run's, and those that the task implies.

        Raises:
            UserError: if the run asks for something else than the task.
        """
        known = MODELS[self.model].options if self.model in MODELS else {}
        implied = {name: value for name, value in task.model_options.items() if name in known}
        for name, value in implied.items():
            if self.model_options.get(name, value) != value:
                raise UserError(
                    f"model_options.{name} is {self.model_options[name]!r}, but the task "
                    f"{task.name!r} needs {value!r} and sets it itself; leave it out"
                )
        return {**implied, **self.model_options}

    def build_model(self, task: Task) -> SplitModel:
        """Build the initial model and cut it: from the root seed, or with the weights given.

        Raises:
            UserError: if model, cut or weights do not fit.
        """
        model = build_model(
            self.model,
            input_shape=task.input_shape,
            num_classes=task.num_classes,
            seed=derive_seed(self.root_seed, "model"),
            options=self._options(task),
        )
        split = split_at(model, self.cut_layer)
        if self.initial_weights:
            load_weights_(split, self.initial_weights, digest=self.initial_weights_digest)
        return split

    @property
    def partition_seed(self) -> int:
        """Seed of the draw that spreads the data."""
        return derive_seed(self.root_seed, "partition") & 0x7FFF_FFFF  # numpy's legacy range


@functools.lru_cache(maxsize=1)
def _load_task(text: str) -> Task:
    name, options, evaluate_on = json.loads(text)
    task = load_task(name, **options)
    return hold_out(task) if evaluate_on == "validation" else task


def hold_out(task: Task) -> Task:
    """Return ``task`` with a fifth of its training data, drawn at random, as its test data."""
    generator = numpy_generator(derive_seed(0, "validation"))
    order = generator.permutation(len(task.train))
    num_held_out = len(task.train) // 5
    return dataclasses.replace(
        task,
        train=task.train.select(np.sort(order[num_held_out:])),
        test=task.train.select(np.sort(order[:num_held_out])),
        notes=f"{task.notes} Evaluated on held-out training data.".strip(),
        generation=None,  # its prompts are the test set's
    )


def default_model(task: str) -> str:
    """Return the name of the model that a task uses unless told otherwise."""
    return TASKS[task].default_model


def default_cut_layer(model: str) -> str:
    """Return the cut that a model uses unless told otherwise."""
    return MODELS[model].default_cut_layer
