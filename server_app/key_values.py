"""How the values of keys are read, from files and command lines."""

from __future__ import annotations

import tomllib
from typing import Any

from pydantic import TypeAdapter, ValidationError

from leansplit.errors import UserError


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
    except (ValidationError, TypeError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
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
