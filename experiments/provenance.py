"""Where the numbers of a comparison come from: settings, what differs, environments, checksums."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansplit.experiments.summary import group_runs
from leansplit.server_app.key_values import flatten
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.results import RESULT_FILE, Run, RunResult

ABSENT = "–"
"""Stands where a method does not use a key."""
_NOT_SETTINGS = ("method", "seed", "out")  # shown elsewhere, or without effect


@dataclass(frozen=True)
class Difference:
    """One key for which methods that use it have different values."""

    key: str
    values: tuple[str, ...]
    """One for each label; ABSENT where the method does not use the key."""
    common: str | None
    """The value that most labels have; None where every label has its own."""


@dataclass(frozen=True)
class Settings:
    """The configurations of a comparison, taken apart."""

    labels: tuple[str, ...]
    shared: Mapping[str, str]
    """What all methods that use the key have alike; said once."""
    users: Mapping[str, tuple[str, ...]]
    """Shared key -> the labels that use it, where these are not all."""
    differences: tuple[Difference, ...]


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration as --set and experiment files take them."""
    flat = {key.removeprefix("options."): value for key, value in flatten(config).items()}
    method = str(config.get("method", ""))
    return {
        key: value
        for key, value in flat.items()
        if key not in _NOT_SETTINGS and (method not in METHODS or is_used(method, key))
    }


def compare_settings(runs: Sequence[Run], order: Sequence[str] = ()) -> Settings:
    """Return what the labels share and what differs; seeds are not settings.

    Runs of one label that differ are all named: "0.1 or 0.2".
    """
    by_label: dict[str, dict[str, str]] = {}
    for label, group in group_runs(runs, order).items():
        seen: dict[str, dict[str, None]] = {}
        for run in group:
            for key, value in settings_of(run.result.config).items():
                seen.setdefault(key, {})[value_text(value)] = None
        by_label[label] = {key: " or ".join(values) for key, values in seen.items()}
    shared: dict[str, str] = {}
    users: dict[str, tuple[str, ...]] = {}
    differences: list[Difference] = []
    for key in dict.fromkeys(key for values in by_label.values() for key in values):
        used = {label: values[key] for label, values in by_label.items() if key in values}
        if len(set(used.values())) == 1:
            shared[key] = next(iter(used.values()))
            if len(used) < len(by_label):
                users[key] = tuple(used)
            continue
        values = tuple(settings.get(key, ABSENT) for settings in by_label.values())
        [(common, times)] = Counter(used.values()).most_common(1)
        differences.append(Difference(key, values, common if times > 1 else None))
    return Settings(tuple(by_label), shared, users, tuple(differences))


def value_text(value: Any) -> str:
    """Return a setting as people write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    return '""' if value == "" else str(value)


def environment_of(result: RunResult) -> tuple[tuple[str, str], ...]:
    """Return what ran the run: commit, versions, hardware, command; (name, text) pairs."""
    return (
        ("Commit", result.commit or "not a git checkout"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in result.versions.items()) or "not recorded"),
        ("Hardware", _hardware(result.hardware) or "not recorded"),
        ("Command", shlex.join(result.command) or "not recorded"),
    )


def source_of(run: Run, root: Path) -> tuple[str, str]:
    """Return (folder relative to ``root``, sha256 of its `result.json`); dashes if not on disk."""
    if run.path is None or not (file := run.path / RESULT_FILE).is_file():
        return ABSENT, ABSENT
    folder = Path(os.path.relpath(run.path, root)).as_posix()
    return folder, hashlib.sha256(file.read_bytes()).hexdigest()


def _hardware(hardware: Mapping[str, Any]) -> str:
    known = {k.replace("_", " "): v for k, v in hardware.items() if v is not None}
    return ", ".join(f"{name}: {value}" for name, value in known.items())
