"""The two controls of a comparison: first-order SFL, and a client that stays frozen.

*Client gain recovered* = (method - frozen) / (first-order SFL - frozen): how much of what training
the clients is worth a method gets. Where a frozen client matches SFL, matching SFL shows nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leansplit.server_app.budget import ROUNDING
from leansplit.server_app.results import Run, RunResult

SFL_METHODS = ("sflv1", "sflv2")
"""First-order SFL; the first of them that is present is the reference of the gain."""
FROZEN_METHOD = "frozen"
MIN_CONTROL_GAP = 0.01
"""Below one point between SFL and frozen the gain would be noise."""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What the controls reached, where both say something."""

    sfl_label: str | None = None
    """The row that is the first-order reference."""
    accuracies: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """seed -> final accuracy of (SFL, frozen), for seeds on which they differ enough."""
    warnings: tuple[str, ...] = ()

    def gain_recovered(self, result: RunResult) -> float | None:
        """Return a run's share of the client gain on its seed; 0 = frozen, 1 = SFL."""
        if result.final_accuracy is None or result.root_seed not in self.accuracies:
            return None
        sfl, frozen = self.accuracies[result.root_seed]
        return (result.final_accuracy - frozen) / (sfl - frozen)


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
    sfl, frozen = first_labels((label, group[0].result.method) for label, group in groups.items())
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
        warning = (
            "No seed has completed runs of both first-order SFL and a frozen client: client gain "
            "recovered cannot be computed, and accuracies alone do not show that training the "
            "clients helped."
        )
        return Controls(sfl_label=sfl, warnings=(warning,))
    high, low = (statistics.fmean(pair[i] for pair in both.values()) for i in (0, 1))
    if high - low < MIN_CONTROL_GAP - ROUNDING:
        warning = (
            f"{sfl} ends less than 1 point above a frozen client ({100 * high:.1f} % against "
            f"{100 * low:.1f} %): training the clients hardly matters here, so client gain "
            "recovered is not shown and matching SFL shows nothing."
        )
        return Controls(sfl_label=sfl, warnings=(warning,))
    kept = {s: pair for s, pair in both.items() if pair[0] - pair[1] >= MIN_CONTROL_GAP - ROUNDING}
    warning = (
        f"Seeds {sorted(both.keys() - kept)} are left out of client gain recovered: there {sfl} "
        "ends less than 1 point above a frozen client."
    )
    warnings = (warning,) if len(kept) < len(both) else ()
    return Controls(sfl_label=sfl, accuracies=kept, warnings=warnings)
