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

_NOTES = (
    "scikit-learn load_digits (test part of the UCI optical recognition of handwritten digits "
    "data): 1,797 images of 8x8 pixels; leansplit's own fixed stratified 80/20 split"
)


def build_digits_task(*, max_train: int | None = None, max_test: int | None = None) -> Task:
    """Return the digits task: inputs (1, 8, 8), 10 classes, 1,437 training and 360 test images.

    Pixels are scaled to [0, 1], then shifted and scaled by the mean and standard deviation of all
    pixels of the 1,437 training images. Per-pixel statistics would blow up the corner pixels, which
    are zero in almost every image.

    The split is stratified and always the same: it does not depend on the run's seed, so runs with
    different seeds are measured on the same test images.

    Args:
        max_train: keep only this many training images, the first ones of the fixed split order.
        max_test: the same for test images.

    Raises:
        UserError: if a limit is not positive.
    """
    digits = load_or_decode(cache_key(_content()), _standardised_digits)

    def examples(what: str, inputs: Tensor, labels: Tensor, limit: int | None) -> Examples:
        if limit is not None and limit < 1:
            raise UserError(f"{what} must be at least 1, got {limit}")
        return Examples(inputs=inputs[:limit], labels=labels[:limit])

    return Task(
        name="digits",
        num_classes=10,
        input_shape=(1, 8, 8),
        class_names=digits.class_names,
        train=examples("max_train", digits.train_inputs, digits.train_labels, max_train),
        test=examples("max_test", digits.test_inputs, digits.test_labels, max_test),
        notes=_NOTES,
    )


def _content() -> dict[str, object]:
    """Return all that the tensors depend on."""
    return {
        "task": "digits",
        "format": 1,
        "scikit-learn": version("scikit-learn"),
        "split": [_TEST_FRACTION, _SPLIT_SEED],
    }


def _standardised_digits() -> DecodedImages:
    """Return both parts in full.

    Kept on disk, for scikit-learn takes seconds to import, which every worker of a simulation and
    every message to a SuperNode would spend.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels: NDArray[np.float64] = bunch.images / _MAX_PIXEL  # [1797, 8, 8]
    labels: NDArray[np.int64] = bunch.target.astype(np.int64)  # [1797]
    train, test = _stratified_split(labels)
    mean, std = pixels[train].mean(), pixels[train].std()
    standardised = ((pixels - mean) / std).astype(np.float32)

    def inputs(indices: NDArray[np.int64]) -> Tensor:
        # A channel axis put in by numpy could have strides that torch takes for channels last.
        return torch.from_numpy(standardised[indices]).unsqueeze(1)

    return DecodedImages(
        train_inputs=inputs(train),
        train_labels=torch.from_numpy(labels[train]),
        test_inputs=inputs(test),
        test_labels=torch.from_numpy(labels[test]),
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
