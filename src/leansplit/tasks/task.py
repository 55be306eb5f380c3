"""What is learned: labelled examples, a loss to minimise and a metric to report.

A task knows nothing about clients, cuts or methods. Shapes: ``n`` examples, ``B`` examples in a
batch, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from leansplit.errors import UserError
from leansplit.sequences import are_tokens
from leansplit.tasks.tokens import Tokenizer

Indices = Tensor | NDArray[np.int64] | Sequence[int]
"""Positions of examples, in the order wanted; repeats are allowed."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples held in memory (or mapped from a file).

    Raises:
        UserError: if a dtype, a rank or the two lengths are wrong.
    """

    inputs: Tensor
    """[n, ...] float32, or tokens [n, 2, S] int64; see :mod:`leansplit.sequences`."""

    labels: Tensor
    """int64: class indices from 0 [n], or for tokens the wanted token of each position [n, S]."""

    def __post_init__(self) -> None:
        is_float = self.inputs.dtype == torch.float32 and self.inputs.ndim >= 2
        if not is_float and not are_tokens(self.inputs):
            raise UserError(
                "inputs must be float32 of shape [n, ...] or token ids with their mask, int64 of "
                f"shape [n, 2, S], got {self.inputs.dtype} of shape {tuple(self.inputs.shape)}"
            )
        shapes = [self.inputs.shape[:1]]
        if not is_float:
            shapes.append(torch.Size([len(self.inputs), self.inputs.shape[2]]))
        if self.labels.dtype != torch.int64 or self.labels.shape[1:] not in [
            shape[1:] for shape in shapes
        ]:
            raise UserError(
                f"labels must be int64 of shape [n], or [n, S] for tokens, got {self.labels.dtype} "
                f"of shape {tuple(self.labels.shape)}"
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


@dataclass(frozen=True, eq=False)
class Share:
    """Some of the examples that many clients share, copied only when they are asked for.

    A process that stands in for all clients would otherwise hold all examples a second time.
    """

    examples: Examples

    rows: Tensor
    """Positions of the share's examples, int64 [n]."""

    @property
    def inputs(self) -> Tensor:
        """A copy of the inputs [n, ...]."""
        return self.examples.inputs.index_select(0, self.rows)

    @property
    def labels(self) -> Tensor:
        """A copy of the labels [n, ...]."""
        return self.examples.labels.index_select(0, self.rows)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """What is read when samples are asked for."""
        return self.examples.inputs, self.examples.labels, self.rows

    def samples_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of (inputs, labels) at ``positions`` of the share."""
        rows = self.rows[positions]
        return self.examples.inputs.index_select(0, rows), self.examples.labels.index_select(
            0, rows
        )

    def __len__(self) -> int:
        return len(self.rows)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats: logits [B, C], labels [B] -> scalar."""
    return F.cross_entropy(logits, labels)


def likeliest(logits: Tensor) -> Tensor:
    """Return the class with the largest logit [B]."""
    return logits.argmax(dim=1)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows whose largest logit is at the label, in [0, 1].

    Logits [B, C], labels [B]. Over several batches, average with the batch sizes as weights.
    """
    return float((likeliest(logits) == labels).double().mean())


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the test prompts are to be continued to.

    Attributes:
        tokenizer: of the task.
        prompts: one for each test row; equal ones share their references.
        references: the wanted text of each row.
        max_length: of prompt and continuation together, in tokens.
    """

    tokenizer: Tokenizer = field(repr=False)
    prompts: tuple[str, ...]
    references: tuple[str, ...]
    max_length: int


@dataclass(frozen=True, eq=False)
class Task:
    """Training and test examples with the loss to minimise and the metric to report.

    Raises:
        UserError: if the parts do not fit together.
    """

    name: str

    num_classes: int
    """C, at least 2; 0 where tokens are predicted and not classes."""

    input_shape: tuple[int, ...]
    """Shape of one input, without the batch dimension: (channels, height, width) for images,
    (2, S) for token ids and their mask."""

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

    model_options: Mapping[str, Any] = field(default_factory=dict)
    """Options that the task asks of any model that has them, such as what it puts out."""

    count: Callable[[Tensor], int] = len
    """Labels -> over how many units loss and metric are means: rows, or tokens."""

    predict: Callable[[Tensor], Tensor] = likeliest
    """Outputs -> classes [B], for ``measures``."""

    measures: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None
    """Predicted classes [n] and labels [n] of the whole test set -> more metrics, by name."""

    generation: Generation | None = None
    """What the test prompts are to be continued to, where the task is to write text."""

    def __post_init__(self) -> None:
        if self.num_classes == 0 and self.train.labels.ndim == 2:
            self._check_shape("training", self.train)
            self._check_shape("test", self.test)
            return
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

    def _check_shape(self, which: str, examples: Examples) -> None:
        if not len(examples):
            raise UserError(f"task {self.name!r} has no {which} examples")
        shape = tuple(examples.inputs.shape[1:])
        if shape != self.input_shape:
            raise UserError(
                f"task {self.name!r} says inputs are {self.input_shape}, but its {which} inputs "
                f"are {shape}"
            )

    def _check_split(self, which: str, examples: Examples) -> None:
        self._check_shape(which, examples)
        lowest, highest = int(examples.labels.min()), int(examples.labels.max())
        if lowest < 0 or highest >= self.num_classes:
            raise UserError(
                f"task {self.name!r} has {self.num_classes} classes, so labels must be from 0 to "
                f"{self.num_classes - 1}; its {which} labels go from {lowest} to {highest}"
            )
