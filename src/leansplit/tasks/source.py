"""Where data come from: local tables, class-per-folder images, or the Hugging Face hub.

Finding (``find_local``) looks only at names, sizes and times, so a cached task starts without
reading data. Reading (``read_local``, ``read_hub``) goes through the ``datasets`` library.
"""

from __future__ import annotations

import contextlib
import glob
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansplit.errors import UserError, did_you_mean

_TRAIN_NAMES = ("train", "training")
_TEST_NAMES = ("test", "testing", "validation", "valid", "val", "dev", "eval")
_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
_TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}
"""Suffix -> the ``datasets`` builder that reads it."""
# What writers append to a split's name: -00000-of-00002, -00000-of-00002-<16 hex digits>, _1, .3
_SHARD_SUFFIX = re.compile(r"[-_.]\d+(-of-\d+)?(-[0-9a-f]{16})?$")

SplitPair = tuple[Any, Any]
"""The training and the test split, each a ``datasets.Dataset``."""


@dataclass(frozen=True)
class LocalSource:
    """Image files found on this machine, by split."""

    builder: str
    """The ``datasets`` builder that reads them: "parquet", "csv", "json" or "imagefolder"."""

    root: Path

    train_split: str

    test_split: str

    files: Mapping[str, tuple[Path, ...]]
    """Sorted files of the training and of the test split."""

    def identity(self) -> dict[str, object]:
        """Return path, size in bytes and modification time in ns of every file, by split."""
        return {
            split: [
                (str(path.resolve()), (status := path.stat()).st_size, status.st_mtime_ns)
                for path in self.files[name]
            ]
            for split, name in (("train", self.train_split), ("test", self.test_split))
        }


def find_local(
    data_path: str | Path, *, train_split: str | None, test_split: str | None
) -> LocalSource:
    """Find the training and test files under ``data_path``.

    Parquet files win over CSV, JSON lines and images, in this order. A table's split is its name
    without a shard number (``train-00000-of-00002.parquet`` -> ``train``), or its folder's name
    where the file is only a number. For images, the split is the folder above the class folders:
    ``train/cat/1.png``.

    Args:
        data_path: a table (parquet, CSV, JSON lines) or a folder.
        train_split: the training split's name; inferred where None.
        test_split: the test split's name; inferred where None (test before validation).

    Raises:
        UserError: if the path is missing, holds neither tables nor images, or lacks a split.
    """
    root = Path(data_path).expanduser()
    if not root.exists():
        raise UserError(f"data path {str(root)!r} does not exist; check data_path")
    if root.is_file() and root.suffix not in _TABLES:
        raise UserError(
            f"data path {str(root)!r} is no table ({', '.join(_TABLES)}); give one, a folder with "
            "train.parquet and test.parquet, or a folder of images by class"
        )
    builder, files = "imagefolder", {}
    for suffix, table_builder in _TABLES.items():
        found = (
            [root]
            if root.is_file()
            else sorted(root.glob(f"*{suffix}")) or sorted(root.rglob(f"*{suffix}"))
        )
        if found and found[0].suffix == suffix:
            builder, files = table_builder, _group_tables(root, found)
            break
    if not files:
        files = _group_images(root, {train_split, test_split})
    train, test = choose_splits(str(root), files, train_split=train_split, test_split=test_split)
    return LocalSource(
        builder=builder,
        root=root,
        train_split=train,
        test_split=test,
        files={name: files[name] for name in (train, test)},
    )


def choose_splits(
    where: str, available: Collection[str], *, train_split: str | None, test_split: str | None
) -> tuple[str, str]:
    """Return the names of the training and the test split, given or inferred.

    Raises:
        UserError: if a named split is absent, none can be inferred, or both are the same.
    """
    train = _choose_split(where, available, "train_split", train_split, _TRAIN_NAMES)
    test = _choose_split(where, available, "test_split", test_split, _TEST_NAMES)
    if train == test:
        raise UserError(
            f"train_split and test_split are both {train!r} in {where}; a test on training data "
            "says nothing, so name two splits"
        )
    return train, test


def _choose_split(
    where: str, available: Collection[str], option: str, given: str | None, names: Sequence[str]
) -> str:
    if given is not None:
        if given not in available:
            raise UserError(
                f"no split {given!r} in {where} ({option}); {did_you_mean(given, available)}"
            )
        return given
    for name in names:
        if name in available:
            return name
    for name in names:  # such as cifar10_train
        holding = sorted(split for split in available if name in re.split(r"[-_.]", split.lower()))
        if holding:
            return holding[0]
    raise UserError(
        f"no {'training' if option == 'train_split' else 'test'} split found in {where}; splits "
        f"there: {', '.join(sorted(available))}. Name one with {option}=..., or add files named "
        f"{names[0]}.parquet or a folder {names[0]}/ with one folder of images per class"
    )


def _group_tables(root: Path, paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Group tables by the split their names stand for."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        name = _SHARD_SUFFIX.sub("", path.stem)
        in_split_folder = path.parent != root and path.parent.name in _TRAIN_NAMES + _TEST_NAMES
        if in_split_folder or (name.isdigit() and path.parent != root):
            name = path.parent.name
        groups.setdefault(name, []).append(path)
    return {name: tuple(group) for name, group in groups.items()}


def _group_images(root: Path, named: Collection[str | None]) -> dict[str, tuple[Path, ...]]:
    """Group image files by the folder directly under ``root``, if those folders are splits."""
    images = sorted(path for path in root.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not images:
        raise UserError(
            f"no table and no image found under {str(root)!r}; expected train.parquet and "
            "test.parquet, or images as train/<class>/<name>.png and test/<class>/<name>.png"
        )
    groups: dict[str, list[Path]] = {}
    for path in images:
        groups.setdefault(path.relative_to(root).parts[0], []).append(path)
    if not set(groups) & {*_TRAIN_NAMES, *_TEST_NAMES, *named}:
        return {"train": tuple(images)}  # class folders directly under the root: one split
    return {name: tuple(group) for name, group in groups.items()}


def read_local(source: LocalSource) -> SplitPair:
    """Read a local source into memory.

    Raises:
        UserError: if a file cannot be read or the splits have different columns.
    """
    import datasets

    data_files: dict[str, list[str]] = {}
    # Fixed keys: ``datasets`` accepts only word characters in split names.
    for key, name in (("train", source.train_split), ("test", source.test_split)):
        if source.builder != "imagefolder":
            data_files[key] = [glob.escape(str(path)) for path in source.files[name]]
        else:  # one pattern, not one per image: each pattern is resolved on its own
            folder = source.root / name
            base = folder if folder.is_dir() else source.root
            data_files[key] = [glob.escape(str(base)) + "/**"]
    # The library would keep an unencoded copy for ever; leansplit keeps the decoded tensors.
    with tempfile.TemporaryDirectory() as scratch, _without_progress_bars():
        try:
            splits = datasets.load_dataset(
                source.builder, data_files=data_files, cache_dir=scratch, keep_in_memory=True
            )
        except Exception as error:  # the library raises many kinds; all mean unreadable files
            cause = error.__cause__ or error
            raise UserError(
                f"cannot read the {source.builder} files under {str(source.root)!r}: "
                f"{type(cause).__name__}: {cause}"
            ) from error
        return splits["train"], splits["test"]


def read_hub(
    dataset: str, config: str | None, *, train_split: str | None, test_split: str | None
) -> SplitPair:
    """Download (or take from the library's own cache) a data set of the Hugging Face hub.

    Args:
        dataset: the hub name, such as "uoft-cs/cifar10".
        config: the hub data set's configuration, where it has several.
        train_split: the training split's name; inferred where None.
        test_split: the test split's name; inferred where None.

    Raises:
        UserError: if it cannot be loaded, or lacks a split.
    """
    import datasets

    try:
        splits = datasets.load_dataset(dataset, config)
    except Exception as error:  # network, naming and configuration errors have no common base
        raise UserError(
            f"cannot load {dataset!r} from the Hugging Face hub ({type(error).__name__}: {error}); "
            "check the name and the network, or give a local copy with data_path=<folder>"
        ) from error
    train, test = choose_splits(
        f"{dataset!r}", list(splits), train_split=train_split, test_split=test_split
    )
    return splits[train], splits[test]


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Silence the library's progress bars, and leave the user's own setting as it was."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()
