"""The digits task: 1,797 real handwritten digits of 8x8 pixels that come with scikit-learn.

No download, trains in seconds: the task of the tests, the first example and the quick comparisons.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leansplit.errors import UserError
from leansplit.tasks.image_cache import DecodedImages, cache_key, load_or_decode
from leansplit.tasks.task import Examples, Task

_MAX_PIXEL = 16.0  # scikit-learn's digits hold counts from 0 to 16
_TEST_FRACTION = 0.2
# Part of the task's definition: changing it changes every published digits number.
_SPLIT_SEED = 20240817
_FORMAT = 1  # of what is cached: raise it with any change to `_decode`

_NOTES = (
    "scikit-learn load_digits (test part of the UCI optical recognition of handwritten digits "
    "data): 1,797 images of 8x8 pixels; leansplit's own fixed stratified 80/20 split"
)


def build_digits_task(
    *, max_train: int | None = None, max_test: int | None = None, copies: int = 1
) -> Task:
    """Return the digits task: inputs (1, 8, 8), 10 classes, 1,437 training and 360 test images.

    Pixels are scaled to [0, 1], then shifted and scaled by the mean and standard deviation of all
    pixels of the 1,437 training images. Per-pixel statistics would blow up the corner pixels, which
    are zero in almost every image.

    The split is stratified and always the same: it does not depend on the run's seed, so runs with
    different seeds are measured on the same test images.

    Args:
        max_train: keep only this many training images, the first ones of the fixed split order.
        max_test: the same for test images.
        copies: times that each training image is there, for populations that outnumber the images:
            different clients then hold the same ones.

    Raises:
        UserError: if a limit is not positive.
    """
    if copies < 1:
        raise UserError(f"copies must be at least 1, got {copies}")
    images = load_or_decode(_key(), _decode)

    def first(what: str, inputs: Tensor, labels: Tensor, limit: int | None) -> Examples:
        if limit is not None and limit < 1:
            raise UserError(f"{what} must be at least 1, got {limit}")
        return Examples(inputs=inputs[:limit], labels=labels[:limit])

    train = first("max_train", images.train_inputs, images.train_labels, max_train)
    notes = _NOTES
    if copies > 1:
        train = Examples(train.inputs.repeat(copies, 1, 1, 1), train.labels.repeat(copies))
        notes = f"{_NOTES}; every training image {copies} times"
    return Task(
        name="digits",
        num_classes=10,
        input_shape=(1, 8, 8),
        class_names=images.class_names,
        train=train,
        test=first("max_test", images.test_inputs, images.test_labels, max_test),
        notes=notes,
    )


def _key() -> str:
    return cache_key(
        {
            "task": "digits",
            "format": _FORMAT,
            "split": [_TEST_FRACTION, _SPLIT_SEED],
            "scikit-learn": version("scikit-learn"),
        }
    )


def _decode() -> DecodedImages:
    """Read, split and standardise all images; scikit-learn alone takes seconds to import."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels: NDArray[np.float64] = bunch.images / _MAX_PIXEL  # [1797, 8, 8]
    labels: NDArray[np.int64] = bunch.target.astype(np.int64)  # [1797]
    train_indices, test_indices = _stratified_split(labels)
    mean, std = pixels[train_indices].mean(), pixels[train_indices].std()
    standardised = ((pixels - mean) / std).astype(np.float32)

    def part(indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        # A channel axis put in by numpy could have strides that torch takes for channels last.
        inputs = torch.from_numpy(standardised[indices]).unsqueeze(1)
        return inputs, torch.from_numpy(labels[indices])

    (train_inputs, train_labels), (test_inputs, test_labels) = map(
        part, (train_indices, test_indices)
    )
    return DecodedImages(
        train_inputs=train_inputs,
        train_labels=train_labels,
        test_inputs=test_inputs,
        test_labels=test_labels,
        class_names=tuple(str(digit) for digit in range(10)),
        jpeg_share=0.0,
    )


def _stratified_split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return shuffled training and test indices with the same share of every class."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(labels), dtype=np.int64),
        test_size=_TEST_FRACTION,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    return train, test
