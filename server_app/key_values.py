"""How the values of keys are read, from files and command lines, and how they are compared."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from leansplit.errors import UserError
from leansplit.server_app.results import CHECKPOINT_KEYS, to_plain


def literal(value: Any) -> Any:
    """Read text as a TOML value where it is one (3, true, [1, 2]); else leave it text."""
    if not isinstance(value, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def typed(key: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    """Read the value of a key as its type.

    Raises:
        UserError: if it is none, naming the key.
    """
    try:
        return _read(value, adapter)
    except TypeError as error:
        detail = str(error)
    except ValidationError as error:
        # Of a list, the first thing that is wrong; of a choice, all that it could have been.
        first = error.errors()[0]
        said = [e["msg"] for e in error.errors() if e["loc"][:-1] == first["loc"][:-1]]
        detail = " or ".join(dict.fromkeys(said)) if first["loc"] else first["msg"]
    try:  # text of a command line that is a list, such as ["a", "b"]
        return _read(literal(value), adapter)
    except (ValidationError, TypeError):
        raise UserError(f"{key} cannot be {value!r}: {detail.lower()}") from None


def _read(value: Any, adapter: TypeAdapter[Any]) -> Any:
    """Let pydantic read a value; but true is not 1, whatever pydantic says."""
    read = adapter.validate_python(value)
    if isinstance(value, bool) and not isinstance(read, bool):
        raise TypeError("input should be a number, not true or false")
    return read


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys, so that ``client.lr`` replaces only that key."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any], at_most: int = 4) -> str:
    """Say which keys of two configurations differ; those of checkpoints do not count."""
    old, new = flatten(to_plain(before)), flatten(to_plain(after))
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k) and k not in CHECKPOINT_KEYS]
    changes = [f"{key}: {old.get(key, 'none')} -> {new.get(key, 'none')}" for key in keys]
    more = len(changes) - at_most
    return ", ".join(changes[:at_most]) + (f" and {more} more" if more > 0 else "")
