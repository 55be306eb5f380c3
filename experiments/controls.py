"""The two controls of a comparison: first-order SFL, and a client that stays frozen.

*Client gain recovered* = (method - frozen) / (first-order SFL - frozen): how much of what training
the clients is worth a method gets. Where a frozen client matches SFL, matching SFL shows nothing.

A row's controls have its setting: the same clients, partition, model and cut. A server that steps
for every client's batch in turn trains more than one that steps once for the whole cohort, whatever
the clients do, so each kind has controls of its own where the comparison has them: SFLV1 and a
frozen client; SFLV2 and CSE-FSL with ``frozen_client``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from leansplit.experiments.fairness import setting_of
from leansplit.server_app.budget import ROUNDING
from leansplit.server_app.methods import METHODS
from leansplit.server_app.results import Run, RunResult

SFL_METHODS = ("sflv1", "sflv2")
"""First-order SFL, in order of preference."""
FROZEN_METHOD = "frozen"
MIN_CONTROL_GAP = 0.01
"""Below one point between SFL and frozen the gain would be noise."""


@dataclass(frozen=True, kw_only=True)
class ControlPair:
    """The controls of one row."""

    sfl: str | None = None
    """Label of the row that is the first-order reference."""
    frozen: str | None = None
    """Label of the row whose clients never learn."""
    accuracies: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """seed -> final accuracy of (SFL, frozen), for seeds on which they differ enough."""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What the controls of every row reached, where they say something."""

    pairs: Mapping[str, ControlPair] = field(default_factory=dict)
    """Label -> its controls."""
    warnings: tuple[str, ...] = ()

    @property
    def sfl_label(self) -> str | None:
        """The reference of the most rows, the first of several."""
        labels = [pair.sfl for pair in self.pairs.values() if pair.sfl]
        return max(labels, key=labels.count, default=None)

    def of(self, label: str) -> ControlPair:
        """Return the controls of a row."""
        return self.pairs.get(label, ControlPair())

    def gain_recovered(self, result: RunResult) -> float | None:
        """Return a run's share of the client gain on its seed; 0 = frozen, 1 = SFL."""
        accuracies = self.of(result.label).accuracies
        if result.final_accuracy is None or result.root_seed not in accuracies:
            return None
        sfl, frozen = accuracies[result.root_seed]
        return (result.final_accuracy - frozen) / (sfl - frozen)

    def without_accuracies(self) -> Controls:
        """Return who the controls are, for runs whose final accuracies mean nothing."""
        pairs = {label: replace(pair, accuracies={}) for label, pair in self.pairs.items()}
        return Controls(pairs=pairs)


def first_labels(methods: Iterable[tuple[str, str]]) -> tuple[str | None, str | None]:
    """Return the labels of (first-order SFL, frozen) among (label, method) pairs.

    With several labels for one method the first is the control.
    """
    labels: dict[str, str] = {}
    for label, method in methods:
        labels.setdefault(method, label)
    sfl = next((labels[method] for method in SFL_METHODS if method in labels), None)
    return sfl, labels.get(FROZEN_METHOD)


def find_controls(completed: Mapping[str, Sequence[Run]]) -> Controls:
    """Return the controls among completed runs, given as label -> runs."""
    groups = {label: group for label, group in completed.items() if group}
    firsts = {label: group[0].result for label, group in groups.items()}
    pairs: dict[str, ControlPair] = {}
    warnings: list[str] = []
    for label, result in firsts.items():
        sfl, frozen = _controls_of(result, firsts)
        pairs[label], found = _pair(sfl, frozen, groups)
        warnings += found
    mixed = [
        label
        for label, result in firsts.items()
        if (frozen := pairs[label].frozen) and _in_turn(result) != _in_turn(firsts[frozen])
    ]
    if mixed and any(pairs[label].accuracies for label in mixed):
        warnings.append(
            f"Servers of {', '.join(mixed)} step for every client's batch in turn, that of the "
            "frozen control once a round, or the other way round: their client gain recovered "
            "holds what more server steps bring. Add such a control: sflv2, and cse-fsl with "
            "frozen_client = true."
        )
    return Controls(pairs=pairs, warnings=tuple(dict.fromkeys(warnings)))


def _controls_of(result: RunResult, rows: Mapping[str, RunResult]) -> tuple[str | None, str | None]:
    """Return the labels of (SFL, frozen) of one setting; of its kind of server if there are."""
    setting = setting_of(result)
    here = {label: row for label, row in rows.items() if setting_of(row) == setting}

    def best(candidates: list[str]) -> str | None:
        return min(candidates, key=lambda k: _in_turn(here[k]) != _in_turn(result), default=None)

    sfl = best([k for method in SFL_METHODS for k, row in here.items() if row.method == method])
    frozen = best([label for label, row in here.items() if _is_frozen(row)])
    return sfl, frozen


def client_order(result: RunResult) -> str:
    """Return what a row's clients compute, as :attr:`MethodSpec.client_order`."""
    if _is_frozen(result):
        return "none"
    spec = METHODS.get(result.method)  # a plug-in may not be at hand any more
    return spec.client_order if spec else "first"


def _is_frozen(result: RunResult) -> bool:
    return result.method == FROZEN_METHOD or bool(_option(result, "frozen_client"))


def _in_turn(result: RunResult) -> bool:
    """Say whether the server steps for every client's batch, not once for the whole cohort."""
    return result.method == "sflv2" or _option(result, "server_mode") == "sequential"


def _option(result: RunResult, name: str) -> object:
    """Return a method's option, its default if it was not given; None if it has none."""
    options = result.config.get("options", {})
    spec = METHODS.get(result.method)  # a plug-in may not be at hand any more
    default = spec.default(name) if spec and name in spec.options else None
    return options.get(name, default)


def _pair(
    sfl: str | None, frozen: str | None, groups: Mapping[str, Sequence[Run]]
) -> tuple[ControlPair, list[str]]:
    finals = [
        {r.result.root_seed: r.result.final_accuracy for r in groups.get(label or "", ())}
        for label in (sfl, frozen)
    ]
    both = {
        seed: (high, low)
        for seed, high in finals[0].items()
        if high is not None and (low := finals[1].get(seed)) is not None
    }
    if not both:
        return ControlPair(sfl=sfl, frozen=frozen), [
            "No seed has completed runs of both first-order SFL and a frozen client: client gain "
            "recovered cannot be computed, and accuracies alone do not show that training the "
            "clients helped."
        ]
    high, low = (statistics.fmean(pair[i] for pair in both.values()) for i in (0, 1))
    if high - low < MIN_CONTROL_GAP - ROUNDING:
        return ControlPair(sfl=sfl, frozen=frozen), [
            f"{sfl} ends less than 1 point above {_named(frozen)} ({100 * high:.1f} % against "
            f"{100 * low:.1f} %): training the clients hardly matters here, so client gain "
            "recovered is not shown and matching SFL shows nothing."
        ]
    kept = {s: pair for s, pair in both.items() if pair[0] - pair[1] >= MIN_CONTROL_GAP - ROUNDING}
    warning = (
        f"Seeds {sorted(both.keys() - kept)} are left out of client gain recovered: there {sfl} "
        f"ends less than 1 point above {_named(frozen)}."
    )
    pair = ControlPair(sfl=sfl, frozen=frozen, accuracies=kept)
    return pair, [warning] if len(kept) < len(both) else []


def _named(frozen: str | None) -> str:
    return "a frozen client" if frozen in (None, METHODS["frozen"].title) else f"{frozen!r}"
