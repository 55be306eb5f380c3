"""Which columns hold the images or texts and the labels, and what the labels mean.

The columns are those of a ``datasets.Dataset``, by their declared features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leansplit.errors import UserError, did_you_mean

_LABEL_NAMES = ("label", "labels", "class", "target", "fine_label", "category", "y")
_READ_BATCH = 1000  # rows turned into Python objects at a time


@dataclass(frozen=True)
class LabelledColumns:
    """The two columns in use."""

    image: str

    label: str


def find_columns(
    features: Mapping[str, Any], *, image_column: str | None, label_column: str | None
) -> LabelledColumns:
    """Return the image and the label column, named by the caller or inferred from the features.

    Inferred: the only column of images; the column of class labels called like a label, else the
    only one, else an integer or text column called like a label.

    Raises:
        UserError: if a named column is absent or of the wrong kind, or none or several could do.
    """
    image = _choose_image_column(features, image_column)
    return LabelledColumns(image=image, label=_choose_label_column(features, label_column, image))


def find_text_columns(
    features: Mapping[str, Any], *, text_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """Return the text and the label column, named by the caller or inferred from the features.

    Inferred: the only column of text that is not the label; the label as for images, but text that
    is called like a label only where nothing else is.

    Raises:
        UserError: if a named column is absent or of the wrong kind, or none or several could do.
    """
    if text_column is not None:
        require_text_column(features, text_column, "text_column")
        return text_column, _choose_label_column(features, label_column, text_column)
    texts = [name for name, feature in features.items() if _is_text(feature)]
    label = label_column
    if label is None:
        others = {name: f for name, f in features.items() if name not in texts}
        with contextlib.suppress(UserError):
            label = _choose_label_column(others, None, "")
    if label is None and len(texts) > 1:
        label = next((name for name in _LABEL_NAMES if name in texts), None)
    candidates = [name for name in texts if name != label]
    if len(candidates) != 1:
        raise UserError(
            f"{'several columns hold' if candidates else 'no column holds'} text; name one with "
            f"text_column=...; columns: {_describe(features)}"
        )
    return candidates[0], _choose_label_column(features, label, candidates[0])


def require_text_column(features: Mapping[str, Any], name: str, option: str) -> None:
    """Insist that a column exists and holds text.

    Raises:
        UserError: if it does not.
    """
    _require_column(features, name, option)
    if not _is_text(features[name]):
        raise UserError(
            f"column {name!r} does not hold text but {_kind(features[name])}; name one that does "
            f"with {option}=...; columns: {_describe(features)}"
        )


def read_texts(split: Any, column: str, which: str) -> list[str]:
    """Return the texts of a column.

    Raises:
        UserError: if one is missing.
    """
    return [str(text) for text in _column_values(split, column, which).tolist()]


def _is_text(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Value) and feature.dtype in {"string", "large_string"}


def _choose_image_column(features: Mapping[str, Any], given: str | None) -> str:
    if given is not None:
        _require_column(features, given, "image_column")
        if not _is_image(features[given]):
            raise UserError(
                f"column {given!r} does not hold images but {_kind(features[given])}; name one "
                f"that does with image_column=...; columns: {_describe(features)}"
            )
        return given
    candidates = [name for name, feature in features.items() if _is_image(feature)]
    if len(candidates) != 1:
        raise UserError(
            f"{'several columns hold' if candidates else 'no column holds'} images; name one with "
            f"image_column=...; columns: {_describe(features)}"
        )
    return candidates[0]


def _choose_label_column(features: Mapping[str, Any], given: str | None, image: str) -> str:
    if given is not None:
        _require_column(features, given, "label_column")
        if not _is_class_label(features[given]) and not _is_discrete(features[given]):
            raise UserError(
                f"column {given!r} does not hold labels but {_kind(features[given])}; labels are "
                "whole numbers or text (of CSV files whole numbers are read as float64 where one "
                f"is missing); columns: {_describe(features)}"
            )
        return given
    class_labels = [name for name, feature in features.items() if _is_class_label(feature)]
    if len(class_labels) == 1:
        return class_labels[0]
    discrete = [
        name for name, feature in features.items() if name != image and _is_discrete(feature)
    ]
    for name in _LABEL_NAMES:
        if name in (class_labels or discrete):
            return name
    raise UserError(
        f"{'several columns hold' if class_labels else 'no column looks like'} labels; name one "
        f"with label_column=...; columns: {_describe(features)}"
    )


def _require_column(features: Mapping[str, Any], name: str, option: str) -> None:
    if name not in features:
        raise UserError(
            f"no column {name!r} ({option}); {did_you_mean(name, features)}; columns: "
            f"{_describe(features)}"
        )


def _is_image(feature: Any) -> bool:
    """An Image feature, or encoded images without their declaration: bytes, or bytes and a path."""
    import datasets

    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"} and _is_image(feature["bytes"])
    if isinstance(feature, datasets.Value):
        return feature.dtype in {"binary", "large_binary"}
    return isinstance(feature, datasets.Image)


def _is_class_label(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.ClassLabel)


def _is_discrete(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Value) and (
        feature.dtype.startswith(("int", "uint"))
        or feature.dtype in {"string", "large_string", "bool"}
    )


def _kind(feature: Any) -> str:
    """Return a short name of a feature's type, such as Image, ClassLabel, int64 or string."""
    return (
        str(getattr(feature, "dtype", None) or type(feature).__name__)
        if not (_is_image(feature) or _is_class_label(feature))
        else ("Image" if _is_image(feature) else "ClassLabel")
    )


def _describe(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items()) or "none"


def read_labels(
    train: Any, test: Any, column: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Return training labels [n], test labels [m] (class indices from 0) and the class names.

    A ClassLabel column brings its own names. Of any other column the classes are the distinct
    training values in ascending order, so labels 1..10 become 0..9.

    Raises:
        UserError: if a label is missing or stands for no class.
    """
    feature = train.features[column]
    train_values = _column_values(train, column, "training")
    test_values = _column_values(test, column, "test")
    if _is_class_label(feature):
        names = tuple(str(name) for name in feature.names)
        for which, values in (("training", train_values), ("test", test_values)):
            if values.size and (values.min() < 0 or values.max() >= len(names)):
                bad = values.min() if values.min() < 0 else values.max()
                unlabelled = " (-1 usually means unlabelled)" if bad == -1 else ""
                raise UserError(
                    f"label {bad}{unlabelled} in column {column!r} of the {which} split is out of "
                    f"range: it has {len(names)} classes, 0 to {len(names) - 1}; choose a "
                    "labelled split, or correct the file"
                )
        return train_values.astype(np.int64), test_values.astype(np.int64), names
    classes, train_labels = np.unique(train_values, return_inverse=True)
    unseen = sorted(set(np.unique(test_values).tolist()) - set(classes.tolist()))
    if unseen:
        raise UserError(
            f"label {unseen[0]!r} in column {column!r} of the test split is out of range: it does "
            f"not occur among the {len(classes)} classes of the training split"
        )
    test_labels = np.searchsorted(classes, test_values)
    names = tuple(str(value) for value in classes.tolist())
    return train_labels.astype(np.int64), test_labels.astype(np.int64), names


def _column_values(split: Any, column: str, which: str) -> NDArray[Any]:
    table = split.select_columns([column]).with_format("arrow")[:]
    values = table[column]
    if values.null_count:
        first = np.asarray(values.is_null()).argmax()
        raise UserError(
            f"column {column!r} of the {which} split has {values.null_count} missing values, the "
            f"first in row {first} (rows count from 0); fill them in, or leave those rows out. In "
            "CSV files words such as NA, None and null mean a missing value, too"
        )
    return np.asarray(values.to_pylist())


def encoded_images(split: Any, column: str) -> Iterator[bytes | None]:
    """Yield the encoded bytes of every image of ``split``, in order; None where one is missing."""
    import datasets

    plain = split.select_columns([column])
    if isinstance(plain.features[column], datasets.Image):
        plain = plain.cast_column(column, datasets.Image(decode=False))
    for batch in plain.with_format("arrow").iter(batch_size=_READ_BATCH):
        for entry in batch[column].to_pylist():
            if not isinstance(entry, dict):  # a plain binary column, or a missing image
                yield entry
            elif entry["bytes"] is not None or not entry["path"]:
                yield entry["bytes"]
            else:
                yield Path(entry["path"]).read_bytes()
