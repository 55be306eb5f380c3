"""Which columns are used, how labels become class indices, and what is said when they cannot."""

from __future__ import annotations

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from leansplit.errors import UserError
from leansplit.tasks.columns import encoded_images, find_columns, read_labels

PETS = ClassLabel(names=["cat", "dog", "owl"])
USUAL = Features({"img": datasets.Image(), "label": PETS})


def find(features: Features, **named: str) -> tuple[str, str]:
    found = find_columns(
        features,
        image_column=named.get("image_column"),
        label_column=named.get("label_column"),
    )
    return found.image, found.label


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"picture": datasets.Image(), "kind": PETS}, ("picture", "kind")),
        ({"id": Value("int64"), "img": datasets.Image(), "label": PETS}, ("img", "label")),
        ({"png": Value("binary"), "target": Value("string")}, ("png", "target")),
        (
            {"im": {"bytes": Value("binary"), "path": Value("string")}, "y": Value("int32")},
            ("im", "y"),
        ),
        # As in CIFAR-100: several class labels, one of them called like a label.
        ({"img": datasets.Image(), "coarse": PETS, "fine_label": PETS}, ("img", "fine_label")),
    ],
)
def test_inferred_columns(columns: dict[str, object], expected: tuple[str, str]) -> None:
    assert find(Features(columns)) == expected


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"image_column": "imgs"}, r"did you mean 'img'\?.*img \(Image\), label \(ClassLabel\)"),
        ({"label_column": "lable"}, r"no column 'lable' \(label_column\); did you mean 'label'\?"),
        ({"image_column": "label"}, "'label' does not hold images but ClassLabel"),
        ({"label_column": "img"}, "'img' does not hold labels but Image"),
    ],
)
def test_wrong_names(named: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(USUAL, **named)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": Value("binary"), "b": Value("binary")}, "several columns hold images"),
        ({"pixels": datasets.List(Value("int64"))}, r"no column holds images.*pixels \(List\)"),
        ({"img": datasets.Image(), "size": Value("int64")}, r"no column looks like labels.*int64"),
        ({"img": datasets.Image(), "label": Value("float32")}, "no column looks like labels"),
        ({"img": datasets.Image(), "coarse": PETS, "fine": PETS}, "several columns hold labels"),
    ],
)
def test_columns_that_cannot_be_inferred(columns: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(Features(columns))


def labelled(values: list[object], feature: object) -> Dataset:
    return Dataset.from_dict({"label": values}, features=Features({"label": feature}))


@pytest.mark.parametrize(
    ("train", "test", "feature", "expected"),
    [
        ([2, 0], [1], PETS, ([2, 0], [1], ("cat", "dog", "owl"))),
        ([3, 1, 7], [7], Value("int64"), ([1, 0, 2], [2], ("1", "3", "7"))),
        (["b", "a", "b"], ["a"], Value("string"), ([1, 0, 1], [0], ("a", "b"))),
    ],
)
def test_labels_become_class_indices(
    train: list[object], test: list[object], feature: object, expected: tuple[object, ...]
) -> None:
    result = read_labels(labelled(train, feature), labelled(test, feature), "label")
    assert (result[0].tolist(), result[1].tolist(), result[2]) == expected


@pytest.mark.parametrize(
    ("train", "test", "feature", "message"),
    [
        ([0, 1], [-1], PETS, r"label -1 \(-1 usually means unlabelled\).*3 classes, 0 to 2"),
        (["a", "b"], ["c"], Value("string"), "label 'c' .* does not occur among the 2 classes"),
        ([0, None], [1], PETS, "training split has 1 missing values"),
    ],
)
def test_labels_that_mean_nothing(
    train: list[object], test: list[object], feature: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_labels(labelled(train, feature), labelled(test, feature), "label")


def test_encoded_images_follow_a_selection() -> None:
    split = Dataset.from_dict({"png": [b"a", b"b", None, b"d"]})
    assert list(encoded_images(split.select([3, 0, 2]), "png")) == [b"d", b"a", None]
