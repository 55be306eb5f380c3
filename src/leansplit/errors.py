"""Errors for users: what was wrong, what was given, what is allowed, what to do next."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

_MAX_LISTED = 16


class UserError(ValueError):
    """A mistake in what the user asked for; shown as one line, without a traceback."""


class RunFailedError(RuntimeError):
    """A run that cannot keep its promises: it stops, says why, and exits non-zero."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return a sentence fragment naming the nearest allowed values, then all of them.

    Example:
        >>> did_you_mean("ho-sf", ["ho-sfl", "fedavg"])
        "did you mean 'ho-sfl'? allowed: fedavg, ho-sfl"
    """
    names = sorted(set(allowed))
    near: Sequence[str] = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    listed = ", ".join(names[:_MAX_LISTED]) + (
        f", … ({len(names) - _MAX_LISTED} more)" if len(names) > _MAX_LISTED else ""
    )
    hint = "did you mean " + " or ".join(repr(name) for name in near) + "? " if near else ""
    return f"{hint}allowed: {listed or 'none'}"


def require_choice(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return ``given`` if it is allowed.

    Raises:
        UserError: naming what was given and the nearest allowed values.
    """
    names = list(allowed)
    if given not in names:
        raise UserError(f"unknown {what} {given!r}; {did_you_mean(given, names)}")
    return given


def require_positive(what: str, given: float) -> float:
    """Return ``given`` if it is a finite number above zero, else raise ``UserError``."""
    if not (given > 0 and given != float("inf")):
        raise UserError(f"{what} must be a finite number above 0, got {given!r}")
    return given


_KINDS: Mapping[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
    tuple: ('a list such as ["one", "two"]', (list, tuple)),
}


def require_kind(what: str, given: object, default: object) -> None:
    """Refuse a value of another kind than the default's; without a default any will do.

    ``"False"`` for a flag would be true, and ``"q_proj"`` for a list its letters.

    Raises:
        UserError: naming the kind that is wanted.
    """
    if type(default) not in _KINDS:
        return
    wanted, types = _KINDS[type(default)]
    is_stray_flag = isinstance(given, bool) and bool not in types  # bool is a kind of int
    if is_stray_flag or not isinstance(given, types):
        raise UserError(f"{what} must be {wanted}, got {given!r}")


@contextmanager
def section_named(section: str, settings: type) -> Iterator[None]:
    """Say in errors about a group of settings whose they are, by the keys that users type.

    Args:
        section: the group's key, such as ``client``.
        settings: the dataclass of the group; its errors begin with the field that they are about,
            or are about the group as a whole.

    Example:
        >>> with section_named("client", OptimizerConfig):
        ...     OptimizerConfig(lr=-1.0)
        UserError: client.lr must be a finite number above 0, got -1.0
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        is_of_field = text.split(" ", 1)[0] in {f.name for f in dataclasses.fields(settings)}
        raise UserError(f"{section}{'.' if is_of_field else ': '}{text}") from error
