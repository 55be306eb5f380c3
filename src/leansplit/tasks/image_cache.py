"""A folder of decoded image tensors, so that a data set is decoded once per machine.

Files are named by a hash of what went in, written under a temporary name and renamed, so a reader
never sees half a file. Loading maps the file: worker processes share one copy in memory. Files are
never deleted; the folder may be emptied at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

CACHE_VARIABLE = "LEANSPLIT_CACHE"
"""Environment variable that names the cache folder."""

_LOCK_TIMEOUT_S = 900.0
_TENSORS = ("train_inputs", "train_labels", "test_inputs", "test_labels")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """Everything of an image task that takes time to make."""

    train_inputs: Tensor
    """[n_train, channels, height, width] float32, standardised."""

    train_labels: Tensor
    """[n_train] int64."""

    test_inputs: Tensor
    """[n_test, channels, height, width] float32, standardised."""

    test_labels: Tensor
    """[n_test] int64."""

    class_names: tuple[str, ...]

    jpeg_share: float
    """Share of the encoded images that were JPEG, in [0, 1]."""


def cache_folder() -> Path:
    """Return the folder named by LEANSPLIT_CACHE, else ``~/.cache/leansplit``."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "leansplit"


def cache_key(content: Mapping[str, object]) -> str:
    """Return 32 hex digits that identify ``content`` (values JSON can write)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_or_decode(key: str, decode: Callable[[], DecodedImages]) -> DecodedImages:
    """Return the cached tensors of ``key``; call ``decode`` and keep its result if there are none.

    Processes that ask for one key at the same time wait for the first to decode it. A cache that
    cannot be written costs speed, never the run: it is logged and the decoded tensors are returned.

    Args:
        key: from ``cache_key``; must cover everything the result depends on.
        decode: makes the tensors. What it raises is passed on, and nothing is cached.
    """
    path = cache_folder() / f"images-{key}.safetensors"
    cached = _load(path)
    if cached is not None:
        return cached
    with _decoding_lock(path):
        cached = _load(path)  # another process may have finished while this one waited
        if cached is not None:
            return cached
        decoded = decode()
        try:
            _save(path, decoded)
        except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in its own
            _logger.warning("cannot cache decoded images in %s: %s", path.parent, error)
            return decoded
    # Read back, so that the first process too holds shared, reclaimable memory.
    return _load(path) or decoded


@contextlib.contextmanager
def _decoding_lock(path: Path) -> Iterator[None]:
    """Hold the right to decode into ``path``, or go on without it where locks do not work.

    The lock only saves work (the rename keeps readers safe), so failing to get it is no error.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S)
            stack.enter_context(lock)
        except (OSError, NotImplementedError, Timeout) as error:
            _logger.warning("decoding images without a lock: %s", error)
        yield


def _save(path: Path, decoded: DecodedImages) -> None:
    tensors = {name: getattr(decoded, name) for name in _TENSORS}
    metadata = {
        "class_names": json.dumps(decoded.class_names),
        "jpeg_share": repr(decoded.jpeg_share),
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="images-", suffix=".partial")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=metadata)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _load(path: Path) -> DecodedImages | None:
    """Map ``path``; None if it is absent, or unreadable (it is then written anew)."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            return DecodedImages(
                **{name: file.get_tensor(name) for name in _TENSORS},
                class_names=tuple(json.loads(metadata["class_names"])),
                jpeg_share=float(metadata["jpeg_share"]),
            )
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        _logger.warning("ignoring the unreadable cache file %s: %s", path, error)
        return None
