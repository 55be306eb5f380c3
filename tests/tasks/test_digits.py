"""The digits task: real data, a split that never moves, statistics of the training part only."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from leansplit.errors import UserError
from leansplit.tasks import Task, build_digits_task

FIRST_TRAIN_LABELS = [8, 5, 7, 8, 9, 5, 3, 0, 3, 6, 4, 3]
FIRST_TEST_LABELS = [6, 8, 7, 6, 6, 0, 4, 4, 3, 3, 5, 8]


@pytest.fixture(scope="module")
def digits() -> Task:
    return build_digits_task()


def test_shapes_and_sizes(digits: Task) -> None:
    assert digits.train.inputs.shape == (1437, 1, 8, 8)
    assert digits.test.inputs.shape == (360, 1, 8, 8)
    assert digits.input_shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")


def test_the_split_is_stratified(digits: Task) -> None:
    train = digits.train.labels.bincount(minlength=10).double()
    test = digits.test.labels.bincount(minlength=10).double()
    # 20 % of each class, up to the rounding of one image
    assert bool(((test - 0.2 * (train + test)).abs() <= 1.0).all())


def test_inputs_have_the_training_sets_mean_and_deviation(digits: Task) -> None:
    inputs = digits.train.inputs.double()
    assert float(inputs.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(inputs.std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    assert float(digits.test.inputs.double().mean()) != pytest.approx(0.0, abs=1e-6)


def test_every_image_is_used_exactly_once(digits: Task) -> None:
    """Undo the standardisation: both splits together are scikit-learn's images, in some order."""
    bunch = load_digits()
    inputs = torch.cat([digits.train.inputs, digits.test.inputs]).double().numpy()[:, 0]
    low, high = inputs.min(), inputs.max()  # pixel counts 0 and 16 both occur
    counts = np.rint((inputs - low) / (high - low) * 16.0).astype(int)
    labels = torch.cat([digits.train.labels, digits.test.labels]).numpy()
    ours = sorted(zip(map(bytes, counts.astype(np.uint8)), labels.tolist(), strict=True))
    theirs = sorted(
        zip(map(bytes, bunch.images.astype(np.uint8)), bunch.target.tolist(), strict=True)
    )
    assert ours == theirs


def test_the_split_is_always_the_same(digits: Task) -> None:
    """The first labels of both parts: a change here changes every published digits number."""
    again = build_digits_task()
    assert torch.equal(again.train.inputs, digits.train.inputs)
    assert digits.train.labels[:12].tolist() == FIRST_TRAIN_LABELS
    assert digits.test.labels[:12].tolist() == FIRST_TEST_LABELS


def test_global_generators_are_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    build_digits_task()
    assert np.random.random() == expected  # noqa: NPY002


def test_limits_keep_the_first_images(digits: Task) -> None:
    small = build_digits_task(max_train=50, max_test=20)
    assert len(small.train) == 50
    assert len(small.test) == 20
    # Same statistics, so a small task differs only in what it leaves out.
    assert torch.equal(small.train.inputs, digits.train.inputs[:50])


def test_limits_must_be_positive() -> None:
    with pytest.raises(UserError, match="max_test must be at least 1, got 0"):
        build_digits_task(max_test=0)
    with pytest.raises(UserError, match="copies must be at least 1, got 0"):
        build_digits_task(copies=0)


def test_copies_let_more_clients_than_images_hold_some(digits: Task) -> None:
    many = build_digits_task(copies=3)
    assert len(many.train) == 3 * len(digits.train)
    for part in (many.train.inputs.chunk(3), many.train.labels.chunk(3)):
        assert torch.equal(part[0], part[1]) and torch.equal(part[1], part[2])
    assert torch.equal(many.train.inputs[: len(digits.train)], digits.train.inputs)
    assert torch.equal(many.test.inputs, digits.test.inputs)
    assert "3 times" in many.notes and "times" not in digits.notes


def test_what_is_cached_is_read_without_scikit_learn(
    digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker process loads the task; the library takes seconds to import."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    again = build_digits_task()
    for mine, known in ((again.train, digits.train), (again.test, digits.test)):
        assert torch.equal(mine.inputs, known.inputs) and torch.equal(mine.labels, known.labels)
        assert mine.inputs.stride() == known.inputs.stride() == (64, 64, 8, 1)
