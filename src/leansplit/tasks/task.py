"""What is learned: labelled examples, a loss to minimise and a metric to report.

A task knows nothing about clients, cuts or methods. Shapes: ``n`` examples, ``B`` examples in a
batch, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from leansplit.errors import UserError

Indices = Tensor | NDArray[np.int64] | Sequence[int]
"""Positions of examples, in the order wanted; repeats are allowed."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples held in memory (or mapped from a file).

    Raises:
        UserError: if a dtype, a rank or the two lengths are wrong.
    """

    inputs: Tensor
    """[n, ...] float32."""

    labels: Tensor
    """[n] int64, class indices from 0."""

    def __post_init__(self) -> None:
        if self.inputs.dtype != torch.float32 or self.inputs.ndim < 2:
            raise UserError(
                f"inputs must be float32 of shape [n, ...], got {self.inputs.dtype} of shape "
                f"{tuple(self.inputs.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise UserError(
                f"labels must be int64 of shape [n], got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}"
            )
        if len(self.inputs) != len(self.labels):
            raise UserError(
                f"inputs and labels must have one length, got {len(self.inputs)} inputs and "
                f"{len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Indices) -> Examples:
        """Return a copy of the examples at ``indices``, in that order.

        Raises:
            UserError: if an index lies outside ``[0, n)``.
        """
        positions = torch.as_tensor(indices, dtype=torch.int64)
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
            raise UserError(
                f"example indices must be from 0 to {len(self) - 1}, got "
                f"{int(positions.min())} to {int(positions.max())}"
            )
        return Examples(
            inputs=self.inputs.index_select(0, positions),
            labels=self.labels.index_select(0, positions),
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats: logits [B, C], labels [B] -> scalar."""
    return F.cross_entropy(logits, labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows whose largest logit is at the label, in [0, 1].

    Logits [B, C], labels [B]. Over several batches, average with the batch sizes as weights.
    """
    return float((logits.argmax(dim=1) == labels).double().mean())


@dataclass(frozen=True, eq=False)
class Task:
    """Training and test examples with the loss to minimise and the metric to report.

    Raises:
        UserError: if the parts do not fit together.
    """

    name: str

    num_classes: int
    """C, at least 2."""

    input_shape: tuple[int, ...]
    """Shape of one input, without the batch dimension: (channels, height, width) for images."""

    class_names: tuple[str, ...]
    """C names; position = label."""

    train: Examples

    test: Examples

    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    """Logits [B, C], labels [B] -> mean loss, a scalar tensor."""

    metric: Callable[[Tensor, Tensor], float] = accuracy
    """Logits [B, C], labels [B] -> a number where larger is better."""

    notes: str = ""
    """What a reader of the results should know about the data, such as its provenance."""

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UserError(
                f"task {self.name!r} needs at least 2 classes, got {self.num_classes}; check that "
                "the label column is the right one"
            )
        if len(self.class_names) != self.num_classes:
            raise UserError(
                f"task {self.name!r} has {self.num_classes} classes but "
                f"{len(self.class_names)} class names"
            )
        self._check_split("training", self.train)
        self._check_split("test", self.test)

    def _check_split(self, which: str, examples: Examples) -> None:
        if not len(examples):
            raise UserError(f"task {self.name!r} has no {which} examples")
        shape = tuple(examples.inputs.shape[1:])
        if shape != self.input_shape:
            raise UserError(
                f"task {self.name!r} says inputs are {self.input_shape}, but its {which} inputs "
                f"are {shape}"
            )
        lowest, highest = int(examples.labels.min()), int(examples.labels.max())
        if lowest < 0 or highest >= self.num_classes:
            raise UserError(
                f"task {self.name!r} has {self.num_classes} classes, so labels must be from 0 to "
                f"{self.num_classes - 1}; its {which} labels go from {lowest} to {highest}"
            )
