"""The ``[tuning]`` table of an experiment file, and what a method's own table changes in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leansplit.errors import UserError, did_you_mean, section_named
from leansplit.federated import OptimizerConfig
from leansplit.server_app.key_values import flatten
from leansplit.server_app.methods import METHODS, is_used

_WHOLE_NUMBERS = {"seed": 0, "max_settings": 1, "max_extensions": 0, "finalists": 1}
_ZEROTH_ORDERS = ("zeroth", "hybrid")


@dataclass(frozen=True, kw_only=True)
class ClientChoice:
    """An optimizer that a zeroth-order client tries, with its own rates."""

    keys: Mapping[str, Any]
    """Run keys, such as ``client.name``."""
    rates: tuple[float, ...]
    """Ascending."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an experiment is tuned; see :mod:`leansplit.experiments.tuning_grid` for the rule."""

    seed: int = 100
    """Root seed of the tuning runs; no comparison may use it."""
    max_settings: int = 12
    """Settings that every method gets, before extensions."""
    max_extensions: int = 2
    """Times that a best setting at the edge is given its missing neighbours."""
    finalists: int = 3
    """Best settings of every method that run again on ``finalist_seeds``; 1 = one seed decides."""
    finalist_seeds: tuple[int, ...] = (101, 102)
    """Further root seeds of tuning runs: one seed and one validation split choose by luck."""
    client_lr: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """``client.lr``: rates of clients that backpropagate."""
    server_lr: tuple[float, ...] = (0.03, 0.1, 0.3)
    """``server.lr``"""
    zeroth_client: tuple[ClientChoice, ...] = (
        ClientChoice(keys={"client.name": "sgd", "client.momentum": 0.9}, rates=(0.01, 0.03, 0.1)),
        ClientChoice(keys={"client.name": "adamw"}, rates=(0.003, 0.01, 0.03)),
    )
    """Optimizers that zeroth-order clients try, each a table of ``client`` keys with its ``lr``
    list. AdamW on a noisy estimate may hardly move, or wander; momentum SGD may be erratic."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Run keys of the tuning runs only, such as a smaller ``samples``."""


def read_tuning(table: Any) -> Tuning:
    """Read ``[tuning]``.

    Raises:
        UserError: for keys that do not exist or values that mean nothing.
    """
    changes = _changes(table, "tuning", (*_WHOLE_NUMBERS, "finalist_seeds", "run"))
    for name, lowest in _WHOLE_NUMBERS.items():
        value = changes.get(name, lowest)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise UserError(
                f"tuning.{name} must be a whole number of at least {lowest}, got {value!r}"
            )
    if "finalist_seeds" in changes:
        seeds = changes["finalist_seeds"]
        is_list = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
        if not is_list or len({*seeds, changes.get("seed", Tuning().seed)}) <= len(seeds):
            raise UserError(
                "tuning.finalist_seeds must be a list of whole numbers, each once and none of "
                f"them tuning.seed, got {seeds!r}"
            )
        changes["finalist_seeds"] = tuple(seeds)
    if "run" in changes:
        if not isinstance(changes["run"], Mapping):
            raise UserError(f"tuning.run must be a table of run keys, got {changes['run']!r}")
        changes["run"] = flatten(changes["run"])
    return dataclasses.replace(Tuning(), **changes)


def method_tuning(tuning: Tuning, method: str, table: Any) -> Tuning:
    """Return ``tuning`` with the rates of a method's own ``tuning`` table.

    The number of settings, of extensions and the seed stay those of all: no method gets more.

    Raises:
        UserError: as :func:`read_tuning`, and for what the method does not tune.
    """
    changes = _changes(table, f"tuning of {method}", ())
    for name, key in (("client_lr", "client.lr"), ("server_lr", "server.lr")):
        if name in changes and not is_used(method, key):
            raise UserError(f"{method} does not use {key!r}; remove it from its tuning")
    if "client_lr" in changes and has_zeroth_client(method):
        raise UserError(f"{method} has a zeroth-order client: give its rates in `zeroth_client`")
    if "zeroth_client" in changes and not has_zeroth_client(method):
        raise UserError(f"{method} has no zeroth-order client: `zeroth_client` does not apply")
    return dataclasses.replace(tuning, **changes)


def has_zeroth_client(method: str) -> bool:
    """Say whether a method's clients step on an estimate, with an optimizer that can be chosen."""
    return METHODS[method].client_order in _ZEROTH_ORDERS and is_used(method, "client.lr")


def _changes(table: Any, what: str, more: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise UserError(f"{what} must be a table, got {table!r}")
    allowed = (*more, "client.lr", "server.lr", "zeroth_client")
    changes: dict[str, Any] = {}
    whole = {key: value for key, value in table.items() if key in ("run", "zeroth_client")}
    rates = {key: value for key, value in table.items() if key not in whole}
    for key, value in (flatten(rates) | whole).items():
        if key not in allowed:
            raise UserError(f"unknown key {key!r} in {what}; {did_you_mean(key, allowed)}")
        if key == "zeroth_client":
            changes[key] = _choices(value, what)
        elif key.endswith(".lr"):
            changes[key.replace(".", "_")] = _rates(value, f"{key} of {what}")
        else:
            changes[key] = value
    return changes


def _rates(value: Any, what: str) -> tuple[float, ...]:
    rates = value if isinstance(value, list) else []
    if not rates or any(
        isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf")
        for rate in rates
    ):
        raise UserError(f"{what} must be a list of rates above 0, got {value!r}")
    if sorted(set(rates)) != rates:
        raise UserError(f"{what} must be ascending, got {value!r}")
    return tuple(float(rate) for rate in rates)


def _choices(value: Any, what: str) -> tuple[ClientChoice, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"zeroth_client of {what} must be a list of tables, got {value!r}")
    names = [f.name for f in dataclasses.fields(OptimizerConfig)]
    tables: list[tuple[dict[str, Any], tuple[float, ...]]] = []
    for entry in value:
        if not isinstance(entry, Mapping) or "lr" not in entry:
            raise UserError(f"every zeroth_client of {what} needs an `lr` list, got {entry!r}")
        keys = {key: item for key, item in entry.items() if key != "lr"}
        for key in keys:
            if key not in names:
                raise UserError(
                    f"unknown key {key!r} in zeroth_client of {what}; {did_you_mean(key, names)}"
                )
        rates = _rates(entry["lr"], f"zeroth_client lr of {what}")
        with section_named("client", OptimizerConfig):  # refuses unknown names and bad values
            OptimizerConfig(**keys, lr=rates[0])
        tables.append((keys, rates))
    return tuple(
        ClientChoice(keys={f"client.{key}": item for key, item in keys.items()}, rates=rates)
        for keys, rates in tables
    )
