"""Image tasks: finding files, columns and splits; decoding; standardising; caching; errors."""

from __future__ import annotations

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from leansplit.errors import UserError
from leansplit.tasks import Task, build_cifar10_task, build_images_task, images

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANSPLIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(num: int, *, size: int = 6, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """[num, size, size(, channels)] random pixels."""
    shape = (num, size, size, channels) if channels > 1 else (num, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    encoded: list[bytes],
    labels: list[object],
    *,
    image: str = "img",
    label: str = "label",
    label_feature: object = None,
) -> None:
    """Write a file as the hub's are, with its features declared in the metadata."""
    features = datasets.Features(
        {
            image: datasets.Image(),
            label: label_feature or datasets.ClassLabel(names=NAMES),
        }
    )
    struct = pa.array([{"bytes": data, "path": None} for data in encoded], features[image].pa_type)
    table = pa.table({image: struct, label: pa.array(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(features.arrow_schema), path)


def write_pair(folder: Path, **options: object) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Write train.parquet (12 images) and test.parquet (6) and return their pixels."""
    train, test = pictures(12, seed=1), pictures(6, seed=2)
    for name, pixels in (("train", train), ("test", test)):
        labels: list[object] = [index % 3 for index in range(len(pixels))]
        write_parquet(
            folder / f"{name}.parquet",
            [encode(picture) for picture in pixels],
            labels,
            **options,  # type: ignore[arg-type]
        )
    return train, test


def write_folder(root: Path, pixels: NDArray[np.uint8], splits: tuple[str, ...]) -> None:
    """Write images as <split>/<class>/<number>.png, class by class."""
    for split in splits:
        for index, picture in enumerate(pixels):
            path = root / split / NAMES[index % 3] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture))


def standardised(train: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The formula in plain NumPy: NHWC pixels -> NCHW."""
    scaled = train / 255.0
    mean, std = scaled.mean(axis=(0, 1, 2)), scaled.std(axis=(0, 1, 2))
    return np.asarray((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2)


# ---- reading ------------------------------------------------------------------------------------


def test_parquet_pixels_labels_and_names(tmp_path: Path) -> None:
    train, test = write_pair(tmp_path / "data")
    task = build_images_task(data_path=tmp_path / "data")
    assert task.input_shape == (3, 6, 6)
    assert task.class_names == tuple(NAMES)
    assert task.train.labels.tolist() == [index % 3 for index in range(12)]
    np.testing.assert_allclose(task.train.inputs.numpy(), standardised(train, train), atol=1e-5)
    # Test images are standardised by the training set's numbers.
    np.testing.assert_allclose(task.test.inputs.numpy(), standardised(train, test), atol=1e-5)
    assert "accuracy refers to this copy of the data; check its provenance" in task.notes
    assert "JPEG" not in task.notes
    assert str(tmp_path) not in task.notes


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_pair(tmp_path / "data")
    were_disabled = datasets.are_progress_bars_disabled()
    capfd.readouterr()
    build_images_task(data_path=tmp_path / "data")
    assert capfd.readouterr() == ("", "")
    assert datasets.are_progress_bars_disabled() == were_disabled


def test_sharded_parquet_in_a_subfolder(tmp_path: Path) -> None:
    pixels = pictures(4)
    for shard, rows in enumerate((slice(0, 2), slice(2, 4))):
        write_parquet(
            tmp_path / "hub" / "data" / f"train-0000{shard}-of-00002-0123456789abcdef.parquet",
            [encode(picture) for picture in pixels[rows]],
            [0, shard],
        )
    write_parquet(
        tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet",
        [encode(pixels[0])],
        [2],
    )
    task = build_images_task(data_path=tmp_path / "hub")
    assert task.train.labels.tolist() == [0, 0, 0, 1]
    assert task.test.labels.tolist() == [2]


def test_numbered_parquet_in_split_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / "hub" / split / "0000.parquet", [encode(pictures(1)[0])], [1])
    assert len(build_images_task(data_path=tmp_path / "hub").train) == 1


def test_named_splits(tmp_path: Path) -> None:
    for split, label in (("fold1", 0), ("fold2", 1), ("fold3", 2)):
        write_parquet(tmp_path / "data" / f"{split}.parquet", [encode(pictures(1)[0])], [label])
    task = build_images_task(data_path=tmp_path / "data", train_split="fold3", test_split="fold1")
    assert task.train.labels.tolist() == [2]
    assert task.test.labels.tolist() == [0]


def test_a_folder_of_images(tmp_path: Path) -> None:
    root = tmp_path / "pets [v1]"  # characters that mean something in a pattern
    pixels = pictures(6)
    write_folder(root, pixels, ("train", "test"))
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    task = build_images_task(data_path=root)
    assert task.class_names == tuple(NAMES)
    assert task.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    in_file_order = pixels[[0, 3, 1, 4, 2, 5]]
    np.testing.assert_allclose(
        task.train.inputs.numpy(), standardised(pixels, in_file_order), atol=1e-5
    )


def test_columns_without_declared_features(tmp_path: Path) -> None:
    """Plain parquet, as other tools write it: bytes, and text labels called like labels."""
    for split, labels in (("train", ["b", "a", "b"]), ("test", ["a", "b", "a"])):
        (tmp_path / "data").mkdir(exist_ok=True)
        table = pa.table({"png": [encode(p) for p in pictures(3)], "target": labels})
        pq.write_table(table, tmp_path / "data" / f"{split}.parquet")
    task = build_images_task(data_path=tmp_path / "data")
    assert task.class_names == ("a", "b")
    assert task.train.labels.tolist() == [1, 0, 1]
    assert task.test.labels.tolist() == [0, 1, 0]


# ---- decoding -----------------------------------------------------------------------------------


def test_jpeg_images_are_noted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        jpegs = [encode(picture, "JPEG") for picture in pictures(3)]
        write_parquet(tmp_path / "data" / f"{split}.parquet", jpegs, [0, 1, 2])
    notes = build_images_task(data_path=tmp_path / "data").notes
    assert "the images are JPEG-encoded: pixels are JPEG-decoded" in notes


def test_subsets_are_fixed_and_nested(tmp_path: Path) -> None:
    train, _ = write_pair(tmp_path / "data")

    def pick(max_train: int) -> tuple[Task, list[int]]:
        """The task, and which of the 12 training images it holds."""
        task = build_images_task(data_path=tmp_path / "data", max_train=max_train, max_test=2)
        rows = [
            row
            for row in range(12)
            for picture in task.train.inputs.numpy()
            # Standardising keeps the order of a channel's pixels, whatever its mean and scale.
            if np.corrcoef(picture[0].ravel(), train[row, ..., 0].ravel())[0, 1] > 0.999
        ]
        return task, rows

    small, few = pick(4)
    large, more = pick(8)
    assert (len(few), len(more), len(small.test)) == (4, 8, 2)
    assert set(few) < set(more)
    assert small.train.labels.tolist() == [row % 3 for row in few]
    assert large.num_classes == 3
    # The subset's own statistics.
    assert float(small.train.inputs.double().mean()) == pytest.approx(0.0, abs=1e-6)


# ---- what users get wrong -----------------------------------------------------------------------


def test_path_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; check data_path"):
        build_images_task(data_path=tmp_path / "nowhere")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table and no image found"):
        build_images_task(data_path=tmp_path)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("a,b")
    with pytest.raises(UserError, match=r"is no table \(\.parquet, \.csv"):
        build_images_task(data_path=tmp_path / "data.txt")


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="cannot read the parquet files"):
        build_images_task(data_path=tmp_path)


def test_no_test_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [encode(pictures(1)[0])], [0])
    with pytest.raises(UserError, match=r"no test split found .* test_split=\.\.\."):
        build_images_task(data_path=tmp_path / "train.parquet")


def test_class_folders_without_splits(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", pictures(6), ("",))
    with pytest.raises(UserError, match=r"no test split found .* one folder of images per class"):
        build_images_task(data_path=tmp_path / "pets")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_split": "tset"}, r"no split 'tset' .* did you mean 'test'\?"),
        ({"test_split": "train"}, "both 'train'"),
        ({"label_column": "lable"}, r"did you mean 'label'\?"),
        ({"max_train": 0}, "max_train must be at least 1"),
        ({"image_size": -4}, "image_size must be at least 1"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write_pair(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        build_images_task(data_path=tmp_path / "data", **options)  # type: ignore[arg-type]


# ---- the hub ------------------------------------------------------------------------------------


def test_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "data")
    files = {split: str(tmp_path / "data" / f"{split}.parquet") for split in ("train", "test")}
    local = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hub"))
    asked: list[tuple[str, str | None]] = []

    def load(name: str, config: str | None) -> object:
        asked.append((name, config))
        return local

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = build_images_task(dataset="owner/pets", dataset_config="small")
    assert asked == [("owner/pets", "small")]
    assert len(task.train) == 12
    assert task.notes == "Hugging Face hub data set owner/pets"
    with pytest.raises(UserError, match="no split 'exam' in 'owner/pets'"):
        build_images_task(dataset="owner/pets", test_split="exam")


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, config: str | None) -> object:
        raise ConnectionError("Couldn't reach 'owner/pets' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"cannot load 'owner/pets' .* data_path=<folder>"):
        build_images_task(dataset="owner/pets")


# ---- CIFAR-10 -----------------------------------------------------------------------------------


def write_cifar_like(folder: Path, num_classes: int = 10) -> None:
    pngs = [encode(picture) for picture in pictures(num_classes)]
    for split in ("train", "test"):
        write_parquet(
            folder / f"{split}.parquet",
            pngs,
            list(range(num_classes)),
            label_feature=datasets.Value("int64"),
        )


def test_cifar10_is_found_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar_like(tmp_path / "sets" / "cifar10")
    monkeypatch.setenv("LEANSPLIT_DATA", str(tmp_path / "sets"))
    task = build_cifar10_task()
    assert task.name == "cifar10"
    assert task.class_names[0] == "airplane"  # names restored: the file has numbers only
    monkeypatch.setenv("LEANSPLIT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="holds no folder 'cifar10'"):
        build_cifar10_task()
    assert len(build_cifar10_task(data_path=tmp_path / "sets" / "cifar10").train) == 10


def test_cifar10_comes_from_the_hub_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, config: str | None) -> object:
        raise ConnectionError(name)

    monkeypatch.delenv("LEANSPLIT_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="cannot load 'uoft-cs/cifar10' from the Hugging Face hub"):
        build_cifar10_task()


def test_cifar10_has_ten_classes(tmp_path: Path) -> None:
    write_cifar_like(tmp_path, num_classes=7)
    with pytest.raises(UserError, match="these data have 7"):
        build_cifar10_task(data_path=tmp_path)


@pytest.mark.data
@pytest.mark.skipif(
    not (Path(os.environ.get("LEANSPLIT_DATA", "")) / "cifar10" / "train.parquet").is_file()
    or not os.environ.get("LEANSPLIT_DATA"),
    reason="LEANSPLIT_DATA names no folder with cifar10",
)
def test_real_cifar10() -> None:
    task = build_cifar10_task(max_train=2000, max_test=500)
    assert task.input_shape == (3, 32, 32)
    assert task.class_names[0] == "airplane"
    assert task.class_names[9] == "truck"
    assert (len(task.train), len(task.test)) == (2000, 500)
    # A random subset of a balanced set: 200 expected per class, 13 standard deviation.
    counts = task.train.labels.bincount(minlength=10)
    assert bool(((counts > 140) & (counts < 260)).all())
    means = task.train.inputs.double().mean(dim=(0, 2, 3))
    assert torch.allclose(means, torch.zeros(3, dtype=torch.float64), atol=1e-5)


# ---- the cache ----------------------------------------------------------------------------------


def test_a_second_load_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "data")
    first = build_images_task(data_path=tmp_path / "data")
    monkeypatch.setattr(images, "read_local", lambda _: pytest.fail("read again"))
    second = build_images_task(data_path=tmp_path / "data")
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.labels, second.test.labels)
    assert (first.notes, first.class_names) == (second.notes, second.class_names)


def test_changed_files_and_options_are_decoded_anew(tmp_path: Path, own_cache: Path) -> None:
    folder = tmp_path / "data"
    write_pair(folder)
    build_images_task(data_path=folder)
    build_images_task(data_path=folder, image_size=3)
    build_images_task(data_path=folder, max_train=5)
    assert len(list(own_cache.glob("*.safetensors"))) == 3
    status = (folder / "train.parquet").stat()
    os.utime(folder / "train.parquet", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    build_images_task(data_path=folder)
    assert len(list(own_cache.glob("*.safetensors"))) == 4
