"""The state of a run's parts as plain data: what a checkpoint keeps.

A stateful part has ``state()``, which returns a tree, and a way to load it again. A tree is a
mapping whose keys are strings or whole numbers and whose values are trees, tensors, or what JSON
can hold. Whole-number keys come back as text: whoever loads a tree turns them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Any]
"""A tree of tensors and JSON values."""

_PLAIN = (str, int, float, bool, type(None))


def apart(state: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (the tensors of a tree by path, the same tree without them).

    Raises:
        TypeError: for a value that is neither, naming its path.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _without_tensors(state, "", tensors)


def together(tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`apart`, on a copy.

    Raises:
        ValueError: if a tensor has no place in ``fields``.
    """
    tree = _copied(fields)
    for path, tensor in tensors.items():
        *folders, name = (_unescaped(part) for part in path.split("/"))
        place: Any = tree
        for folder in folders:
            place = place.get(folder) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name in place:
            raise ValueError(f"no place for the tensor {path!r}")
        place[name] = tensor
    return tree


def _without_tensors(
    state: Mapping[Any, Any], prefix: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(key, str | int):
            raise TypeError(f"{prefix or 'the state'} has the key {key!r}, which is no text")
        name, path = str(key), f"{prefix}{_escaped(str(key))}"
        if isinstance(value, Tensor):
            # A copy: what is written later must be what was there now, whoever shares the memory.
            tensors[path] = value.detach().cpu().clone().contiguous()
        elif isinstance(value, Mapping):
            fields[name] = _without_tensors(value, f"{path}/", tensors)
        else:
            _require_plain(path, value)
            fields[name] = value
    return fields


def _require_plain(path: str, value: object) -> None:
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, list | tuple):
            _require_plain(path, part)
        elif not isinstance(part, _PLAIN):
            raise TypeError(f"{path} is of the type {type(part).__name__}, which is no plain data")


def _copied(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in fields.items()}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _unescaped(name: str) -> str:
    return name.replace("~1", "/").replace("~0", "~")
