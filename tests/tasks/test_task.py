"""Examples and Task: what they accept, and what they say about what they do not."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from leansplit.errors import UserError
from leansplit.tasks import Examples, Task, accuracy, cross_entropy


def make_examples(num_examples: int = 6, num_classes: int = 3) -> Examples:
    inputs = torch.arange(num_examples * 4, dtype=torch.float32).reshape(num_examples, 1, 2, 2)
    return Examples(inputs=inputs, labels=torch.arange(num_examples) % num_classes)


def make_task(**changes: object) -> Task:
    fields: dict[str, object] = {
        "name": "sample",
        "num_classes": 3,
        "input_shape": (1, 2, 2),
        "class_names": ("a", "b", "c"),
        "train": make_examples(),
        "test": make_examples(3),
    }
    return Task(**{**fields, **changes})  # type: ignore[arg-type]


def test_length_is_the_number_of_examples() -> None:
    assert len(make_examples(5)) == 5


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_select_takes_examples_in_the_order_asked_for(kind: type) -> None:
    selected = make_examples().select(kind([4, 0, 4]))
    assert selected.labels.tolist() == [1, 0, 1]
    assert selected.inputs[:, 0, 0, 0].tolist() == [16.0, 0.0, 16.0]


def test_select_copies() -> None:
    examples = make_examples()
    examples.select([0]).inputs.zero_()
    assert examples.inputs.sum() == sum(range(24))


def test_selecting_nothing_gives_no_examples() -> None:
    assert len(make_examples().select([])) == 0


@pytest.mark.parametrize("indices", [[6], [-1], [0, 99]])
def test_select_rejects_indices_out_of_range(indices: list[int]) -> None:
    with pytest.raises(UserError, match="from 0 to 5"):
        make_examples().select(indices)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 3), torch.zeros(2), "int64"),
        (torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64), "int64"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "2 inputs and 3 labels"),
    ],
)
def test_examples_reject_wrong_tensors(
    inputs: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Examples(inputs=inputs, labels=labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1, "class_names": ("a",)}, "at least 2 classes"),
        ({"class_names": ("a", "b")}, "3 classes but 2 class names"),
        ({"input_shape": (2, 2)}, r"says inputs are \(2, 2\)"),
        ({"test": make_examples(0)}, "no test examples"),
        ({"train": make_examples(6, num_classes=4)}, "training labels go from 0 to 3"),
    ],
)
def test_a_task_rejects_parts_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_task(**changes)


def test_a_negative_label_is_rejected() -> None:
    examples = Examples(inputs=torch.zeros(1, 1, 2, 2), labels=torch.tensor([-1]))
    with pytest.raises(UserError, match="test labels go from -1"):
        make_task(test=examples)


def test_a_task_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_task().name = "other"  # type: ignore[misc]


def test_loss_is_the_mean_in_nats_and_metric_the_share_correct() -> None:
    # Row 1: uniform over 2 classes, loss ln 2. Row 2: odds 3 to 1 for the label, loss ln 4/3.
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    labels = torch.tensor([1, 0])
    expected = (math.log(2.0) + math.log(4.0 / 3.0)) / 2.0
    assert cross_entropy(logits, labels).item() == pytest.approx(expected)
    assert accuracy(logits, labels) == 0.5  # a tie goes to the lower class, here the wrong one
    assert make_task().loss is cross_entropy
    assert make_task().metric is accuracy
