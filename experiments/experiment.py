"""Experiment files: shared settings, methods with small overrides, seeds."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansplit.errors import UserError, did_you_mean
from leansplit.experiments.controls import first_labels
from leansplit.experiments.experiment_file import title_with
from leansplit.experiments.runner import FLOWER, Runner
from leansplit.experiments.tuning_config import Tuning, method_tuning, read_tuning
from leansplit.plugins import load_plugin
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.key_values import flatten
from leansplit.server_app.methods import METHODS, is_used

_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "title": ((str,), "text"),
    "learning_rates": ((str,), "text"),
    "seeds": ((list,), "a list of whole numbers"),
    "target_accuracy": ((int, float), "a fraction such as 0.9"),
    "plugins": ((list,), "a list of files or modules"),
    "shared": ((dict,), "a table of run keys"),
    "overrides": ((dict,), "a table of run keys"),
    "tuning": ((dict,), "a table"),
    "methods": ((list,), "[[methods]] tables"),
}
"""What an experiment file may hold: (types, in words)."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of an experiment."""

    label: str
    """The row it belongs to."""
    config: RunConfig
    setting: str = ""
    """What sets it apart from the row's other runs of one seed, while tuning."""
    runner: Runner = FLOWER
    """Who makes it."""

    @property
    def name(self) -> str:
        """The row, and the setting if there are several."""
        return f"{self.label}, {self.setting}" if self.setting else self.label

    @property
    def folder(self) -> str:
        """Where its results go, below the experiment's output folder."""
        return f"{slug(self.label)}/{slug(self.setting) or f'seed-{self.config.seed}'}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ``[[methods]]`` table: a row of the comparison."""

    label: str
    method: str
    settings: Mapping[str, Any]
    """Flat run keys, shared ones and overrides included; no seed."""
    tuning: Tuning
    """How it is tuned: the experiment's tuning with its own rates."""

    def with_settings(self, settings: Mapping[str, Any]) -> Row:
        """Return the row with other run keys on top."""
        return dataclasses.replace(self, settings={**self.settings, **settings})

    def plan(self, seed: int) -> PlannedRun:
        """Return the row's run of one seed.

        Raises:
            UserError: for settings that no run can have.
        """
        settings = {**self.settings, "seed": seed}
        try:
            config = run_config(self.method, settings)
        except UserError as error:
            raise UserError(f"{self.label}: {error}") from error
        return PlannedRun(label=self.label, config=config)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison of methods on one task."""

    title: str
    overrides: Mapping[str, Any]
    """Run keys of the command line, which win over the file's."""
    learning_rates: str | None
    """One sentence: how learning rates were chosen."""
    target_accuracy: float | None
    seeds: tuple[int, ...]
    tuning: Tuning
    rows: tuple[Row, ...]
    """In the order of the file, which is that of tables and plots."""
    runs: tuple[PlannedRun, ...]
    """All rows of the first seed, then of the next. Of each seed first-order SFL and the frozen
    client come first: from then on every run has a client gain recovered."""

    @property
    def full_title(self) -> str:
        """The title, with what the command line changed."""
        return title_with(self.title, self.overrides)

    @property
    def order(self) -> list[str]:
        """Labels of the rows in the order of the file."""
        return [row.label for row in self.rows]

    def made_by(self, runner: Runner) -> Experiment:
        """Return the experiment with all its runs made by ``runner``."""
        runs = tuple(dataclasses.replace(run, runner=runner) for run in self.runs)
        return dataclasses.replace(self, runs=runs)


def slug(text: str) -> str:
    """Return ``text`` as a name for a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


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
        f"no experiment file {name!r}; give a path or a shipped one; {did_you_mean(name, shipped)}"
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
    entries = [{"method": method} for method in dict.fromkeys(methods)]
    source, shared, tuning = Path("--methods"), {"task": task}, read_tuning({})
    rows = [_row(source, entry, shared, overrides or {}, tuning) for entry in entries]
    chosen = tuple(seeds) or (0,)
    return Experiment(
        tuning=tuning,
        title=task.capitalize(),
        overrides=overrides or {},
        learning_rates=None,
        target_accuracy=None,
        seeds=chosen,
        rows=tuple(rows),
        runs=_runs(rows, chosen),
    )


def load_experiment(
    path: Path,
    *,
    seeds: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
    methods: Sequence[str] = (),
) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: TOML with ``shared`` (run keys), ``methods`` (a list of tables with ``method``, an
            optional ``label``, run keys and a ``tuning`` table), ``seeds``, and optionally
            ``title``, ``learning_rates``, ``target_accuracy``, ``tuning``, ``overrides`` (run keys
            that win over every row's) and ``plugins`` (files relative to this one, or module
            names; see :mod:`leansplit.plugins`).
        seeds: in place of the file's.
        overrides: run keys that win over the file's.
        methods: only the rows of these methods or labels.

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
        types, described = _KEYS[key]
        if not isinstance(content[key], types) or isinstance(content[key], bool):
            raise UserError(f"{key} in {path} must be {described}, got {content[key]!r}")
    for plugin in content.get("plugins", []):
        is_file = str(plugin).endswith(".py")
        load_plugin(str(path.parent / plugin) if is_file else str(plugin))
    target = content.get("target_accuracy")
    if target is not None and not 0 < target <= 1:
        raise UserError(f"target_accuracy in {path} must be a fraction in (0, 1], got {target!r}")
    overrides = {**flatten(content.get("overrides", {})), **(overrides or {})}
    everywhere = [content.get("shared", {}), overrides, *content.get("methods", [])]
    if any(isinstance(part, Mapping) and "seed" in part for part in everywhere):
        raise UserError("an experiment has `seeds` (or --seeds), not `seed`")
    chosen = tuple(seeds) or tuple(content.get("seeds", [0]))
    if not chosen or any(not isinstance(s, int) or isinstance(s, bool) for s in chosen):
        raise UserError(f"seeds in {path} must be a list of whole numbers, got {chosen!r}")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"seeds must differ, got {', '.join(map(str, chosen))}")
    tables = content.get("methods", [])
    if not isinstance(tables, list) or not tables:
        raise UserError(f"{path} names no methods; add [[methods]] tables with a `method` key")
    tuning = read_tuning(content.get("tuning", {}))
    shared = content.get("shared", {})
    rows = [_row(path, entry, shared, overrides, tuning) for entry in tables]
    for key in (*flatten(shared), *overrides):
        if not any(is_used(row.method, key) for row in rows):
            raise UserError(f"no method of {path} uses {key!r}; remove it")
    labels = [row.label for row in rows]
    folders = [slug(label) for label in labels]
    if "" in folders:
        raise UserError(f"{path}: a label needs a letter or digit, got {labels!r}")
    repeated = sorted({label for label in labels if folders.count(slug(label)) > 1})
    if repeated:
        raise UserError(f"{path} has several rows labelled {repeated}; give each its own label")
    rows = _only(rows, methods)
    return Experiment(
        title=str(content.get("title", path.stem)),
        overrides=overrides,
        learning_rates=content.get("learning_rates"),
        target_accuracy=target,
        seeds=chosen,
        tuning=tuning,
        rows=tuple(rows),
        runs=_runs(rows, chosen),
    )


def _runs(rows: Sequence[Row], seeds: Sequence[int]) -> tuple[PlannedRun, ...]:
    first = first_labels((row.label, row.method) for row in rows)
    order = sorted(rows, key=lambda row: first.index(row.label) if row.label in first else 2)
    return tuple(row.plan(seed) for seed in seeds for row in order)


def _only(rows: list[Row], names: Sequence[str]) -> list[Row]:
    allowed = [name for row in rows for name in (row.method, row.label)]
    chosen: set[str] = set()
    parts = list(names)
    while parts:
        # A label may hold the comma that parts the names: the longest that fits is meant.
        lengths = range(len(parts), 0, -1)
        fits = [n for n in lengths if ", ".join(parts[:n]) in allowed]
        if not fits:
            name = parts[0]
            raise UserError(f"the experiment has no method {name!r}; {did_you_mean(name, allowed)}")
        chosen.add(", ".join(parts[: fits[0]]))
        del parts[: fits[0]]
    return [row for row in rows if not chosen or {row.method, row.label} & chosen]


def _row(
    path: Path,
    entry: Any,
    shared: Mapping[str, Any],
    overrides: Mapping[str, Any],
    tuning: Tuning,
) -> Row:
    if not isinstance(entry, Mapping) or "method" not in entry:
        raise UserError(f"every [[methods]] table of {path} needs a `method` key, got {entry!r}")
    settings = dict(entry)
    method = str(settings.pop("method"))
    if method not in METHODS:
        raise UserError(f"unknown method {method!r} in {path}; {did_you_mean(method, METHODS)}")
    label = str(settings.pop("label", METHODS[method].title))
    tuned = method_tuning(tuning, method, settings.pop("tuning", {}))
    common = {**flatten(shared), **overrides}  # a method takes what it uses of what is for all
    used = {key: value for key, value in common.items() if is_used(method, key)}
    simulation = {"replica_storage": "worker"}
    winning = {key: value for key, value in used.items() if key in overrides}
    merged = {**simulation, **used, **flatten(settings), **winning}
    return Row(label=label, method=method, settings=merged, tuning=tuned)
