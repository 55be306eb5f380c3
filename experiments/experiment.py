"""Experiment files: shared settings, methods with small overrides, seeds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansplit.errors import UserError, did_you_mean
from leansplit.plugins import load_plugin
from leansplit.server_app.config import RunConfig, flatten, run_config
from leansplit.server_app.methods import METHODS, is_used

_KEYS = (
    "title",
    "learning_rates",
    "seeds",
    "target_accuracy",
    "plugins",
    "shared",
    "methods",
)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of an experiment."""

    label: str
    """The row it belongs to."""
    config: RunConfig

    @property
    def folder(self) -> str:
        """Where its results go, below the experiment's output folder."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
        return f"{slug}/seed-{self.config.seed}"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison of methods on one task."""

    title: str
    learning_rates: str | None
    """One sentence: how learning rates were chosen."""
    target_accuracy: float | None
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]
    """All methods of the first seed, then of the next: something to compare shows early."""

    @property
    def order(self) -> list[str]:
        """Methods in the order of the file."""
        return list(dict.fromkeys(run.config.method for run in self.runs))


def shipped_experiments() -> dict[str, Path]:
    """Return name -> file of the experiments that come with the package."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def find_experiment(name: str) -> Path:
    """Return the experiment file called ``name``: a path, or a shipped experiment.

    Raises:
        UserError: if there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_experiments()
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"no experiment file {name!r}; give a path, or a shipped one: {did_you_mean(name, shipped)}"
    )


def experiment_on(
    task: str,
    methods: Sequence[str],
    *,
    seeds: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Experiment:
    """Return an experiment without a file: methods with their defaults on one task.

    Raises:
        UserError: as for :func:`load_experiment`.
    """
    rows = [
        _row(Path("--methods"), {"method": m}, {"task": task}, overrides or {}) for m in methods
    ]
    chosen = tuple(seeds) or (0,)
    runs = tuple(
        PlannedRun(label=label, config=run_config(method, {**settings, "seed": seed}))
        for seed in chosen
        for label, method, settings in rows
    )
    return Experiment(
        title=task.capitalize(),
        learning_rates=None,
        target_accuracy=None,
        seeds=chosen,
        runs=runs,
    )


def load_experiment(
    path: Path, *, seeds: Sequence[int] = (), overrides: Mapping[str, Any] | None = None
) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: TOML with ``shared`` (run keys), ``methods`` (a list of tables with ``method``, an
            optional ``label``, and run keys), ``seeds``, and optionally ``title``,
            ``learning_rates``, ``target_accuracy`` and ``plugins`` (files relative to this one, or
            module names; see :mod:`leansplit.plugins`).
        seeds: in place of the file's.
        overrides: run keys that win over the file's.

    Raises:
        UserError: for a file that cannot be read or keys that do not exist, naming them.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read experiment {path}: {error}") from error
    for key in content:
        if key not in _KEYS:
            raise UserError(f"unknown key {key!r} in {path}; {did_you_mean(key, _KEYS)}")
    for plugin in content.get("plugins", []):
        is_file = str(plugin).endswith(".py")
        load_plugin(str(path.parent / plugin) if is_file else str(plugin))
    everywhere = [content.get("shared", {}), overrides or {}, *content.get("methods", [])]
    if any(isinstance(part, Mapping) and "seed" in part for part in everywhere):
        raise UserError("an experiment has `seeds` (or --seeds), not `seed`")
    chosen = tuple(seeds) or tuple(content.get("seeds", [0]))
    if not chosen or any(not isinstance(s, int) or isinstance(s, bool) for s in chosen):
        raise UserError(f"seeds in {path} must be a list of whole numbers, got {chosen!r}")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"seeds must differ, got {', '.join(map(str, chosen))}")
    methods = content.get("methods", [])
    if not isinstance(methods, list) or not methods:
        raise UserError(f"{path} names no methods; add [[methods]] tables with a `method` key")
    rows = [_row(path, entry, content.get("shared", {}), overrides or {}) for entry in methods]
    labels = [label for label, _, _ in rows]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise UserError(f"{path} has several rows labelled {repeated}; give each its own label")
    runs = tuple(
        PlannedRun(label=label, config=run_config(method, {**settings, "seed": seed}))
        for seed in chosen
        for label, method, settings in rows
    )
    return Experiment(
        title=str(content.get("title", path.stem)),
        learning_rates=content.get("learning_rates"),
        target_accuracy=content.get("target_accuracy"),
        seeds=chosen,
        runs=runs,
    )


def _row(
    path: Path, entry: Any, shared: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(entry, Mapping) or "method" not in entry:
        raise UserError(f"every [[methods]] table of {path} needs a `method` key, got {entry!r}")
    settings = dict(entry)
    method = str(settings.pop("method"))
    if method not in METHODS:
        raise UserError(f"unknown method {method!r} in {path}; {did_you_mean(method, METHODS)}")
    label = str(settings.pop("label", METHODS[method].title))
    common = {**flatten(shared), **overrides}  # a method takes what it uses of what is for all
    used = {key: value for key, value in common.items() if is_used(method, key)}
    simulation = {"replica_storage": "worker"}
    winning = {key: value for key, value in used.items() if key in overrides}
    return label, method, {**simulation, **used, **flatten(settings), **winning}
