"""Change values in an experiment file; comments, order and everything else stay as they are."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leansplit.errors import RunFailedError
from leansplit.server_app.key_values import flatten
from leansplit.server_app.methods import METHODS
from leansplit.server_app.results import write_files


def write_settings(
    path: Path, settings: Mapping[str, Mapping[str, Any]], learning_rates: str
) -> None:
    """Put run keys into the ``[[methods]]`` tables of an experiment file.

    Args:
        path: the file, replaced whole or not at all.
        settings: label of a row -> dotted run keys of one section each, such as ``client.lr``.
        learning_rates: the sentence on how they were chosen.

    Raises:
        UserError: if the file cannot be written.
        RunFailedError: if the file would not mean exactly what it meant before but for these
            values; it is then left as it is.
    """
    text = path.read_text(encoding="utf-8")
    changed = _changed(text, settings, learning_rates)
    wanted = _wanted(tomllib.loads(text), settings, learning_rates)
    if tomllib.loads(changed) != wanted:
        raise RunFailedError(f"cannot write to {path} without changing more; put the values in")
    write_files(path.parent, {path.name: changed.encode()})


def copy_with_overrides(source: Path, target: Path, overrides: Mapping[str, Any]) -> None:
    """Copy an experiment file; what the command line changed becomes its ``[overrides]`` table.

    The copy then says what was run, and running it again runs the same.

    Raises:
        UserError: if a file cannot be read or written.
    """
    text = source.read_text(encoding="utf-8")
    if overrides:
        import tomlkit

        document: Any = tomlkit.parse(text)
        document["overrides"] = {**flatten(document.get("overrides", {})), **overrides}
        text = str(tomlkit.dumps(document))
    write_files(target.parent, {target.name: text.encode()})


def title_with(title: str, overrides: Mapping[str, Any]) -> str:
    """Return an experiment's title with what the command line changed."""
    changes = ", ".join(f"{key}={value}" for key, value in flatten(overrides).items())
    return f"{title}; with {changes}" if changes else title


def _changed(text: str, settings: Mapping[str, Mapping[str, Any]], learning_rates: str) -> str:
    import tomlkit
    from tomlkit.items import Table

    document: Any = tomlkit.parse(text)
    document["learning_rates"] = tomlkit.string(learning_rates, multiline="\n" in learning_rates)
    for table in document["methods"]:
        for key, value in settings.get(_label(table), {}).items():
            section, name = key.split(".")
            if section not in table:
                _append(table, tomlkit.key([section, name]), value)
            elif name not in table[section] and isinstance(table[section], Table):
                _append(table[section], name, value)
            else:
                table[section][name] = value
    return str(tomlkit.dumps(document))


def _append(table: Any, key: Any, value: Any) -> None:
    """Add a key after the last one; what trails it may be the comment above the next table."""
    body, trailing = table.value.body, []
    while body and body[-1][0] is None:
        trailing.append(body.pop())
    table.append(key, value)
    body.extend(reversed(trailing))


def _wanted(
    content: dict[str, Any], settings: Mapping[str, Mapping[str, Any]], learning_rates: str
) -> dict[str, Any]:
    wanted = copy.deepcopy(content)
    wanted["learning_rates"] = learning_rates
    for table in wanted["methods"]:
        for key, value in settings.get(_label(table), {}).items():
            section, name = key.split(".")
            table.setdefault(section, {})[name] = value
    return wanted


def _label(table: Mapping[str, Any]) -> str:
    return str(table.get("label", METHODS[str(table["method"])].title))
