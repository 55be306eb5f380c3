"""A sweep: one experiment over several values of one key; what does not use the key runs once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leansplit.errors import UserError, did_you_mean
from leansplit.experiments.experiment import (
    Experiment,
    PlannedRun,
    experiment_on,
    find_experiment,
    load_experiment,
)
from leansplit.experiments.experiment_file import title_with
from leansplit.experiments.provenance import settings_of, value_text
from leansplit.server_app.config import FREE_SECTIONS, KEYS, option_keys
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.results import to_plain

SWEEP_FILE = "sweep.json"
DEFAULT_TASK = "digits"
"""Without an experiment file."""
SYMBOLS: Mapping[str, str] = {
    "mu": "probe.perturbation_scale",
    "P": "probe.num_perturbations",
}
"""Symbols of the papers -> keys."""
_NAMES = {key: symbol for symbol, key in SYMBOLS.items()}
_IMPLIED = {
    "alpha": {"partition": "dirichlet"},
    "classes_per_client": {"partition": "pathological"},
}
"""Keys that have an effect under another key's value only."""
_REFUSED = {
    "method": "a sweep takes several methods with --methods",
    "task": "results of several tasks cannot be compared",
    "seed": "a sweep has --seeds",
    "out": "a sweep has --out",
}

LoadExperiment = Callable[[Mapping[str, Any]], Experiment]
"""Overrides -> the experiment under them."""


@dataclass(frozen=True)
class Place:
    """Where a run's row stands in a sweep."""

    row: str
    """Label of the line: the experiment's own label."""
    value: Any
    """The swept value; None for a row that does not use the key."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept, over what, and where each label belongs."""

    title: str
    key: str
    values: tuple[Any, ...]
    """Typed; numbers ascending, all else as given."""
    order: tuple[str, ...]
    """Methods in the order of lines and tables."""
    places: Mapping[str, Place]
    """Label of a run -> its place."""
    target_accuracy: float | None = None
    learning_rates: str | None = None

    @property
    def name(self) -> str:
        """The key, or the symbol that papers have for it."""
        return _NAMES.get(self.key, self.key)

    @property
    def described(self) -> str:
        """Symbol and key, or the key alone."""
        return self.key if self.name == self.key else f"{self.name}, {self.key}"

    def to_json(self) -> bytes:
        """Return the content of `sweep.json`."""
        places = {label: [place.row, place.value] for label, place in self.places.items()}
        content = {
            "title": self.title,
            "key": self.key,
            "values": self.values,
            "order": self.order,
            "places": places,
            "target_accuracy": self.target_accuracy,
            "learning_rates": self.learning_rates,
        }
        return (json.dumps(to_plain(content), indent=2, ensure_ascii=False) + "\n").encode()


def read_sweep(path: Path) -> Sweep:
    """Read a `sweep.json`.

    Raises:
        UserError: if it cannot be read or is not ours.
    """
    try:
        content = json.loads(path.read_bytes())
        places = {label: Place(row, value) for label, (row, value) in content["places"].items()}
        return Sweep(
            title=str(content["title"]),
            key=str(content["key"]),
            values=tuple(content["values"]),
            order=tuple(content["order"]),
            places=places,
            target_accuracy=content["target_accuracy"],
            learning_rates=content["learning_rates"],
        )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read {path}: not a sweep of ours ({error!r})") from error


def base_experiment(
    experiment: str | None, methods: Sequence[str], task: str | None, *, seeds: Sequence[int] = ()
) -> LoadExperiment:
    """Return what is swept: an experiment file, or methods with their defaults on a task.

    Args:
        experiment: file or name of a shipped experiment.
        methods: the rows of these methods or labels only; without a file, the methods to run.
        task: without a file.
        seeds: in place of the file's.

    Raises:
        UserError: if there is neither or both, or a method is not there.
    """
    if experiment is None:
        if not methods:
            raise UserError("name what to sweep: an experiment, or --methods M --task T")
        return lambda overrides: experiment_on(
            task or DEFAULT_TASK, methods, seeds=seeds, overrides=overrides
        )
    if task is not None:
        raise UserError("an experiment names its task; remove --task")
    path = find_experiment(experiment)
    return lambda overrides: load_experiment(
        path, seeds=seeds, overrides=overrides, methods=methods
    )


def parse_over(text: str) -> tuple[str, list[str]]:
    """Return (key, values as text) of ``KEY=v1,v2,v3``; commas within brackets part nothing.

    Raises:
        UserError: for another form, an unknown key (with the nearest) or fewer than two values.
    """
    key, separator, listed = text.partition("=")
    key = SYMBOLS.get(key.strip(), key.strip())
    values = [value.strip() for value in re.split(r",(?![^\[]*\])", listed)]
    if not separator or not key:
        raise UserError(f"--over takes key=v1,v2,v3, got {text!r}; try --over mu=1e-4,1e-3,1e-2")
    if key in _REFUSED:
        raise UserError(f"{key!r} cannot be swept: {_REFUSED[key]}")
    known = [*SYMBOLS, *KEYS, *(option for method in METHODS for option in option_keys(method))]
    section, _, rest = key.partition(".")
    if key not in known and not (section in FREE_SECTIONS and rest):
        raise UserError(f"unknown key {key!r}; {did_you_mean(key, set(known) - set(_REFUSED))}")
    if len(values) < 2 or not all(values):
        raise UserError(f"a sweep takes two or more values, got {text!r}")
    return key, values


def plan_sweep(
    load: LoadExperiment, over: str, overrides: Mapping[str, Any]
) -> tuple[Sweep, list[PlannedRun]]:
    """Plan every run of a sweep.

    Args:
        load: overrides -> the experiment; called once for each value.
        over: ``KEY=v1,v2,v3``.
        overrides: other keys that win over the experiment's.

    Returns:
        The sweep, and its runs: all of the first seed first.

    Raises:
        UserError: for an unknown key, a value that does not fit, or a key that no method uses.
    """
    key, texts = parse_over(over)
    if key in overrides:
        raise UserError(f"{key!r} is swept and set; remove --set {key}=…")
    implied = {**_IMPLIED.get(key, {}), **overrides}
    experiments = [load({**implied, key: text}) for text in texts]
    first = experiments[0]
    if not any(is_used(row.method, key) for row in first.rows):
        methods = dict.fromkeys(row.method for row in first.rows)
        raise UserError(f"no method here uses {key!r}: {', '.join(methods)}")
    name = _NAMES.get(key, key)
    runs: dict[tuple[str, int], PlannedRun] = {}
    places: dict[str, Place] = {}
    values: list[Any] = []
    for experiment in experiments:
        for planned in experiment.runs:
            _require_effect(planned, key)
            label, value = planned.label, None
            if is_used(planned.config.method, key):
                value = to_plain(settings_of(planned.config.to_dict())[key])
                label = f"{planned.label}, {name} = {value_text(value)}"
                if value not in values:
                    values.append(value)
            places[label] = Place(planned.label, value)
            runs.setdefault(
                (label, planned.config.seed), PlannedRun(label=label, config=planned.config)
            )
    if len(values) < len(texts):
        raise UserError(f"values of a sweep must differ, got {over!r}")
    folders = [run.folder for run in runs.values()]
    if clash := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise UserError(f"two rows of the sweep would share the folder {clash}; rename one")
    if are_numbers(values):
        values.sort()
    rows = [row.label for row in first.rows]
    sweep = Sweep(
        title=title_with(f"{first.title}: sweep over {name}", overrides),
        key=key,
        values=tuple(values),
        order=tuple(dict.fromkeys(row.method for row in first.rows)),
        places=dict(sorted(places.items(), key=lambda item: rows.index(item[1].row))),
        target_accuracy=first.target_accuracy,
        learning_rates=first.learning_rates,
    )
    return sweep, sorted(runs.values(), key=lambda run: first.seeds.index(run.config.seed))


def are_numbers(values: Sequence[Any]) -> bool:
    """Say whether all values are numbers, which have an order and a scale."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _require_effect(planned: PlannedRun, key: str) -> None:
    for needed, value in _IMPLIED.get(key, {}).items():
        if (given := getattr(planned.config, needed)) != value:
            raise UserError(
                f"{key} has no effect under {needed} = {given} ({planned.label}); "
                f"use {needed} = {value}"
            )
