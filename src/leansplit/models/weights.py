"""Initial weights from a file: pretrained starts, or the end of an earlier run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from leansplit.errors import UserError
from leansplit.models.split import SplitModel


def weights_digest(path: str | Path) -> str:
    """Return 16 hex digits that name the exact content of a file (BLAKE2b).

    Raises:
        UserError: if it cannot be read.
    """
    return hashlib.blake2b(_read(path), digest_size=8).hexdigest()


def load_weights_(model: SplitModel, path: str | Path, *, digest: str = "") -> None:
    """Copy a safetensors file with the whole model's state into both halves.

    Args:
        model: changed in place; a file that does not fit changes nothing.
        path: such as the ``model.safetensors`` that a run leaves behind: every parameter and
            buffer under the unsplit model's name. Wherever the model is cut, the file is the same.
        digest: what :func:`weights_digest` said when the run was configured; "" = anything goes.

    Raises:
        UserError: if the file cannot be read, is another one than was configured, or has missing
            or unexpected names or other shapes.
    """
    content = _read(path)
    if digest and hashlib.blake2b(content, digest_size=8).hexdigest() != digest:
        raise UserError(
            f"initial weights {str(path)!r} are not those that this run was configured with; put "
            "the same file on every machine, and do not change it during a run"
        )
    try:
        state = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"initial weights {str(path)!r} are no safetensors file: {error}"
        ) from error
    try:
        model.load_full_state_dict(state)
    except UserError as error:
        raise UserError(f"initial weights {str(path)!r} do not fit: {error}") from error


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot read initial weights {str(path)!r}: {reason.lower()}") from error
