"""Checkpoints on disk: one folder for each, there whole or not at all, and refused with a reason.

    checkpoints/round-00000040/manifest.json      what it is of, size and digest of every file
                              /state.safetensors  tensors of the server, and what clients deposited
                              /state.json         everything else of the same
                              /rounds.parquet, ledger.parquet, telemetry.parquet    results so far

A folder is written under another name and gets its own when all of it is on the disk. Reading
executes no code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from leansplit.errors import UserError
from leansplit.server_app.results import parquet_bytes

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints in the folder of its results."""
SCHEMA_VERSION = 2
"""1 had no digest of the manifest."""
FORMAT = "leansplit checkpoint"

MANIFEST = "manifest.json"
DIGEST = "blake2b"
"""Where a manifest holds the digest of itself, and of each file."""
_TENSORS, _FIELDS = "state.safetensors", "state.json"
_PREFIX, _STAGED = "round-", ".staged-"
_MOST_MANIFEST_BYTES = 1_000_000


class CheckpointError(UserError):
    """A checkpoint that cannot be used, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        round: the last round that is done; 0 = none, all so far came to nothing.
        about: what it is of: configuration, versions; see :mod:`leansplit.server_app.checkpoints`.
        tensors: path -> tensor.
        fields: JSON values.
        tables: name -> table.
    """

    round: int
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    fields: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder``, the newest first; their content is not looked at.

    ``folder`` is a run's, that of its checkpoints, or a checkpoint itself.
    """
    if folder.name.startswith(_PREFIX):
        return [folder] if folder.is_dir() else []
    inside = folder / CHECKPOINTS
    found = (inside if inside.is_dir() else folder).glob(f"{_PREFIX}*")
    ours = [p for p in found if p.is_dir() and p.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(ours, key=lambda path: int(path.name.removeprefix(_PREFIX)), reverse=True)


def run_folder(folder: Path) -> Path:
    """Return the run's folder, whichever of those of :func:`find_checkpoints` is given."""
    if folder.name.startswith(_PREFIX):
        folder = folder.parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def checkpoint_path(folder: Path, round: int) -> Path:
    """Return where the checkpoint of a round is, or would be."""
    return folder / f"{_PREFIX}{round:08d}"


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into ``folder``, replacing one of the same round; return where it is.

    Raises:
        UserError: if the disk refuses; what was there is then still there.
    """
    contents = {
        _TENSORS: safetensors.torch.save(dict(checkpoint.tensors)),
        _FIELDS: _json(checkpoint.fields),
        **{f"{name}.parquet": parquet_bytes(t) for name, t in checkpoint.tables.items()},
    }
    manifest = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "round": checkpoint.round,
        "about": dict(checkpoint.about),
        "files": {n: {"bytes": len(c), "blake2b": digest_of(c)} for n, c in contents.items()},
    }
    contents[MANIFEST] = signed(manifest)
    final = checkpoint_path(folder, checkpoint.round)
    staged, old = (folder / f"{_STAGED}{uuid.uuid4().hex}" for _ in range(2))
    is_first = not folder.exists()
    try:
        staged.mkdir(parents=True)
        for name, content in contents.items():
            with (staged / name).open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        _sync(staged)
        _replace(final, staged, old)
        _sync(folder)
        for above in folder.parents if is_first else ():
            _sync(above)  # who made them need not have
    except OSError as error:
        raise UserError(
            f"cannot write a checkpoint to {folder}: {error.strerror or error}"
        ) from error
    finally:
        for leftover in (staged, old) if final.exists() else (staged,):
            shutil.rmtree(leftover, ignore_errors=True)
    return final


def _replace(final: Path, staged: Path, old: Path) -> None:
    """Give ``staged`` the name ``final``; what has that name becomes ``old``, or keeps it.

    Raises:
        OSError: if the disk refuses.
    """
    is_there = final.exists()
    if is_there:
        final.rename(old)
    try:
        staged.rename(final)
    except OSError:
        if is_there:
            old.rename(final)
        raise


def prune_checkpoints(folder: Path, keep: set[Path]) -> None:
    """Remove all checkpoints in ``folder`` but ``keep``, and what a killed process left staged."""
    for path in [*find_checkpoints(folder), *folder.glob(f"{_STAGED}*")]:
        if path not in keep:
            gone = path.with_name(f"{_STAGED}{uuid.uuid4().hex}")
            with suppress(OSError):
                path.rename(gone)  # under its own name it is whole, up to the end
                shutil.rmtree(gone, ignore_errors=True)


def remove_checkpoints(run_dir: Path) -> None:
    """Remove the checkpoints of a run that came to its end."""
    prune_checkpoints(run_dir / CHECKPOINTS, keep=set())
    with suppress(OSError):
        (run_dir / CHECKPOINTS).rmdir()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: if it is not one of ours, of another schema, truncated or damaged in any
            way, naming the file and the reason.
    """
    manifest = _read_manifest(path)
    contents: dict[str, bytes] = {}
    for name, entry in manifest["files"].items():
        contents[name] = _read_file(path / name, entry)
    tables: dict[str, pd.DataFrame] = {}
    for name, content in contents.items():
        if name.endswith(".parquet"):
            with _refusing(path / name):
                tables[name.removesuffix(".parquet")] = pd.read_parquet(io.BytesIO(content))
    with _refusing(path / _TENSORS):
        tensors = safetensors.torch.load(contents[_TENSORS])
    with _refusing(path / _FIELDS):
        fields = json.loads(contents[_FIELDS])
        if not isinstance(fields, dict):
            raise ValueError("it is no JSON object")
    return Checkpoint(manifest["round"], manifest["about"], tensors, fields, tables)


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    with _refusing(file):
        if file.stat().st_size > _MOST_MANIFEST_BYTES:
            raise ValueError("it is too large")
        content = file.read_bytes()
        manifest = json.loads(content)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError("not a leansplit checkpoint")
        if (version := manifest.get("schema_version")) != SCHEMA_VERSION:
            raise ValueError(
                f"its schema_version is {version!r}, this leansplit reads {SCHEMA_VERSION}; use "
                "the leansplit version that wrote it"
            )
        if signed({key: v for key, v in manifest.items() if key != DIGEST}) != content:
            raise ValueError("its content is not what was written")
        about, files, round = (manifest.get(key) for key in ("about", "files", "round"))
        if type(round) is not int or round < 0 or not isinstance(about, dict):
            raise ValueError("its round or its description is missing")
        if path.name != checkpoint_path(path, round).name:
            raise ValueError(f"it is of round {round}, its folder of another")
        if not isinstance(files, dict) or not {_TENSORS, _FIELDS} <= files.keys():
            raise ValueError("it does not name its files")
        for name, entry in files.items():
            is_plain = Path(name).name == name and name not in (".", "..", "")
            if not is_plain or not isinstance(entry, dict) or entry.keys() != {"bytes", "blake2b"}:
                raise ValueError(f"its entry {name!r} is not one of a file")
    return manifest


def _read_file(file: Path, entry: Mapping[str, Any]) -> bytes:
    with _refusing(file):
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"it has {size} bytes, not {entry['bytes']}")
        content = file.read_bytes()
        if digest_of(content) != entry["blake2b"]:
            raise ValueError("its content is not what was written")
    return content


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn any error of reading ``file`` inside the block into a reason."""
    try:
        yield
    except OSError as error:
        raise _refused(file, error.strerror or error) from error
    except (ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise _refused(file, error) from error
    except (pa.ArrowException, KeyError) as error:
        raise _refused(file, f"{type(error).__name__}: {error}") from error


def _refused(file: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"cannot use the checkpoint file {file}: {reason}")


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1).encode(
        "utf-8", "surrogatepass"
    )


def signed(manifest: Mapping[str, Any]) -> bytes:
    """Return the one text of a manifest: its last entry is the digest of the text without it."""
    return _json({**manifest, DIGEST: digest_of(_json(manifest))})


def digest_of(content: bytes) -> str:
    """Return BLAKE2b of a file, 128 bits in hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _sync(folder: Path) -> None:
    """Have the disk know the names in a folder, where the system allows it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
