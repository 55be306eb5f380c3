"""Image classification tasks from any labelled image data set: local parquet, folders, or the hub.

``build_images_task`` is generic; ``build_cifar10_task`` is the same loader with CIFAR-10's columns.
Decoded tensors are cached (see ``image_cache``), so decoding happens once per machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from leansplit.errors import UserError
from leansplit.tasks.columns import encoded_images, find_columns, read_labels
from leansplit.tasks.image_cache import DecodedImages, cache_key, load_or_decode
from leansplit.tasks.image_pixels import Pixels, decode_pixels, standardise
from leansplit.tasks.source import SplitPair, find_local, read_hub, read_local
from leansplit.tasks.task import Examples, Task

DATA_VARIABLE = "LEANSPLIT_DATA"
"""Environment variable that names a folder of data sets, such as one that holds ``cifar10/``."""

# Both are part of what a cached file or a subset means: a change needs new values.
_CACHE_FORMAT = 1
_SUBSET_SEED = 20240817

_CIFAR10_HUB_NAME = "uoft-cs/cifar10"
_CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def build_images_task(
    *,
    data_path: str | Path | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_size: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    name: str = "images",
) -> Task:
    """Return a task of labelled images, inputs [n, C, H, W] float32 with C = 1 or 3.

    Pixels are standardised by the mean and standard deviation of each channel over the training
    images in use; the test images are shifted and scaled by the same numbers.

    Args:
        data_path: a folder of parquet files (train.parquet, train-00000-of-00002.parquet), a
            parquet file, or a folder of images as <split>/<class>/<file>.
        dataset: a data set's name on the Hugging Face hub; give this or ``data_path``.
        dataset_config: the hub data set's configuration, where it has several.
        image_column: inferred where None: the column of images.
        label_column: inferred where None: the column of class labels, or one called like a label.
        train_split: inferred where None: train.
        test_split: inferred where None: test, else validation.
        image_size: height and width in pixels to resize every image to (bilinear). Where None, all
            images must have one size.
        max_train: use only this many training images: a fixed random subset, the same for every
            run, and part of every larger one.
        max_test: the same for test images.
        name: the task's name in results.

    Raises:
        UserError: if the data cannot be found, read or understood; the message says what to change.
    """
    for option, value in (
        ("image_size", image_size),
        ("max_train", max_train),
        ("max_test", max_test),
    ):
        if value is not None and value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    if (data_path is None) == (dataset is None):
        raise UserError(
            f"task {name!r} needs either data_path=<folder or parquet file> or dataset=<name on "
            f"the Hugging Face hub>, got {'neither' if data_path is None else 'both'}"
        )

    def decode(splits: SplitPair) -> DecodedImages:
        return _decode(
            splits,
            image_column=image_column,
            label_column=label_column,
            image_size=image_size,
            max_train=max_train,
            max_test=max_test,
        )

    content: dict[str, object] = {
        "format": _CACHE_FORMAT,
        "pillow": PIL.__version__,  # versions may decode JPEG differently in the last bit
        "columns": [image_column, label_column],
        "image_size": image_size,
        "subset": [_SUBSET_SEED, max_train, max_test],
    }
    if data_path is not None:
        source = find_local(data_path, train_split=train_split, test_split=test_split)
        content["local"] = [source.builder, source.identity()]
        decoded = load_or_decode(cache_key(content), lambda: decode(read_local(source)))
        provenance = [
            f"read from the local folder or file {source.root.name!r}; accuracy refers to this "
            "copy of the data; check its provenance"
        ]
    else:
        assert dataset is not None
        splits = read_hub(dataset, dataset_config, train_split=train_split, test_split=test_split)
        content["hub"] = [dataset, dataset_config, *(split._fingerprint for split in splits)]
        decoded = load_or_decode(cache_key(content), lambda: decode(splits))
        provenance = [f"Hugging Face hub data set {dataset}"]
    return _as_task(name, decoded, provenance)


def build_cifar10_task(
    *,
    data_path: str | Path | None = None,
    image_size: int | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
) -> Task:
    """Return CIFAR-10: inputs (3, 32, 32), 10 classes, 50,000 training and 10,000 test images.

    The data are taken from ``data_path``, else from ``cifar10/`` in the folder that the environment
    variable LEANSPLIT_DATA names, else from the Hugging Face hub. Arguments as for
    ``build_images_task``.

    Raises:
        UserError: as ``build_images_task``; also if the data do not have 10 classes.
    """
    path = Path(data_path) if data_path is not None else None
    data_folder = os.environ.get(DATA_VARIABLE)
    if path is None and data_folder:
        path = Path(data_folder).expanduser() / "cifar10"
        if not path.exists():
            raise UserError(
                f"{DATA_VARIABLE} is {data_folder!r}, which holds no folder 'cifar10'; correct or "
                "unset it, or give data_path=<folder>"
            )
    task = build_images_task(
        data_path=path,
        dataset=None if path is not None else _CIFAR10_HUB_NAME,
        image_column="img",
        label_column="label",
        image_size=image_size,
        max_train=max_train,
        max_test=max_test,
        name="cifar10",
    )
    if task.num_classes != len(_CIFAR10_CLASSES):
        raise UserError(
            f"CIFAR-10 has 10 classes, but these data have {task.num_classes}; use the task "
            "'images' for other data"
        )
    if task.class_names == tuple(str(label) for label in range(len(_CIFAR10_CLASSES))):
        # A copy that lost the names on the way; the numbers are CIFAR-10's usual ones.
        return replace(task, class_names=_CIFAR10_CLASSES)
    return task


def _decode(
    splits: SplitPair,
    *,
    image_column: str | None,
    label_column: str | None,
    image_size: int | None,
    max_train: int | None,
    max_test: int | None,
) -> DecodedImages:
    train, test = splits
    columns = find_columns(train.features, image_column=image_column, label_column=label_column)
    find_columns(test.features, image_column=columns.image, label_column=columns.label)
    # Classes come from the whole training split: a subset may miss one.
    train_labels, test_labels, class_names = read_labels(train, test, columns.label)

    def decode(
        split: Any, which: str, limit: int | None, like: Pixels | None = None
    ) -> tuple[Pixels, torch.Tensor]:
        labels = train_labels if like is None else test_labels
        kept = subset_of(len(split), limit)
        if len(kept) < len(split):
            split, labels = split.select(kept), labels[kept]
        pixels = decode_pixels(
            lambda: encoded_images(split, columns.image),
            num_images=len(kept),
            split=which,
            image_size=image_size,
            like=like,
        )
        return pixels, torch.from_numpy(labels)

    train_pixels, kept_train_labels = decode(train, "train", max_train)
    test_pixels, kept_test_labels = decode(test, "test", max_test, train_pixels)
    train_inputs, test_inputs = standardise(train_pixels, test_pixels)
    num_images = len(train_pixels.values) + len(test_pixels.values)
    return DecodedImages(
        train_inputs=train_inputs,
        train_labels=kept_train_labels,
        test_inputs=test_inputs,
        test_labels=kept_test_labels,
        class_names=class_names,
        jpeg_share=(train_pixels.num_jpeg + test_pixels.num_jpeg) / num_images,
    )


def subset_of(num_rows: int, limit: int | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return ``limit`` row numbers, ascending: a fixed random subset, nested in larger ones."""
    if limit is None or limit >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    order = np.random.default_rng(_SUBSET_SEED).permutation(num_rows)
    return np.sort(order[:limit]).astype(np.int64)


def _as_task(name: str, decoded: DecodedImages, provenance: Sequence[str]) -> Task:
    notes = list(provenance)
    if decoded.jpeg_share > 0:
        share = "" if decoded.jpeg_share == 1 else f" ({100 * decoded.jpeg_share:.1f} % of them)"
        notes.append(
            f"the images are JPEG-encoded{share}: pixels are JPEG-decoded, not the originals"
        )
    _, channels, height, width = decoded.train_inputs.shape
    return Task(
        name=name,
        num_classes=len(decoded.class_names),
        input_shape=(channels, height, width),
        class_names=decoded.class_names,
        train=Examples(inputs=decoded.train_inputs, labels=decoded.train_labels),
        test=Examples(inputs=decoded.test_inputs, labels=decoded.test_labels),
        notes="; ".join(notes),
    )
