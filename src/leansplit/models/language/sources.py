"""Where a language model comes from: the hub, a folder, a package, or a bare configuration."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from leansplit.errors import UserError

PACKAGE: Final = "package:"


def is_pretrained(source: str) -> bool:
    """Say whether a model's source is a name or a folder, and not a bare configuration."""
    return bool(source.strip()) and not source.strip().startswith("{")


def resolved(source: str) -> str:
    """Return what the transformers library takes for ``source``.

    ``package:name/folder`` is a folder of an installed package, and what begins as a path does
    (``./``, ``../``, ``/``, ``~``) is one; all else stays as it is.

    Raises:
        UserError: if there is no such package or folder.
    """
    if source.startswith((".", "/", "~")):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"there is no folder {source!r}; give one that holds config.json, "
                "model.safetensors and a tokenizer, or a name on the hub"
            )
        return str(folder)
    if not source.startswith(PACKAGE):
        return source
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    try:
        path = resources.files(name).joinpath(inside)
    except ModuleNotFoundError as error:
        raise UserError(
            f"model {source!r} needs the package {name}; install it, for example with "
            "pip install 'leansplit[bench]'"
        ) from error
    if not path.is_dir():
        raise UserError(f"the package {name} has no folder {inside!r}")
    return str(path)
