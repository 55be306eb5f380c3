"""Plans at every cut, measured at as few as prove the others.

A language model is a stack of equal blocks. Each moment of a client's step then costs some bytes
for each block below the cut, and the peak is the largest of these moments: a convex function of the
number of blocks, from two on: a single block has none before it, whose output is still held. Three
points of a convex function that lie on a line prove that all points between the outer two do. FLOPs
are a line outright.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from leansplit.costs import StepCosts
from leansplit.errors import UserError
from leansplit.models.language.halves import WholeLanguageModel
from leansplit.server_app.config import RunConfig
from leansplit.server_app.methods import METHODS
from leansplit.server_app.planning import Plan, Planner


@dataclass(frozen=True)
class Sweep:
    """Plans of several methods at every cut.

    Attributes:
        cuts: allowed cuts in forward order.
        plans: method -> a plan for each cut; None where the method cannot be cut there.
        refusals: why not, by (method, cut).
    """

    cuts: Sequence[str]
    plans: Mapping[str, Sequence[Plan | None]]
    refusals: Mapping[tuple[str, str], str]

    @property
    def all_plans(self) -> list[Plan]:
        """Every plan there is; one of a method that has no cut."""
        found: list[Plan] = []
        for method, plans in self.plans.items():
            there = [plan for plan in plans if plan is not None]
            found += there if METHODS[method].is_split else there[:1]
        return found


def sweep_cuts(
    planner: Planner,
    configs: Mapping[str, RunConfig],
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Plan every method at every cut.

    Args:
        planner: the model.
        configs: method -> its configuration; the cut layer is replaced.
        say: told what is being done.

    Raises:
        UserError: if no method can be planned anywhere.
    """
    cuts = planner.cut_layers()
    if not cuts:
        raise UserError("the model has no cut: it would need a block, or a layer, on either side")
    refusals: dict[tuple[str, str], str] = {}
    plans: dict[str, list[Plan | None]] = {}
    for method, config in configs.items():
        say(f"planning {method} at {len(cuts)} cuts")
        at = [dataclasses.replace(config, cut_layer=cut) for cut in cuts]
        known = _step_costs(planner, at, refusals)
        plans[method] = [
            planner.plan(at[index], known[index]) if index in known else None
            for index in range(len(cuts))
        ]
    if not any(any(found) for found in plans.values()):
        raise UserError(next(iter(refusals.values()), "the model has no cut"))
    return Sweep(cuts, plans, refusals)


def _step_costs(
    planner: Planner, configs: Sequence[RunConfig], refusals: dict[tuple[str, str], str]
) -> dict[int, StepCosts]:
    """Return the costs at the cuts where the method works, by position."""
    measured: dict[int, StepCosts | None] = {}

    def at(index: int) -> StepCosts | None:
        if index not in measured:
            config = configs[index]
            try:
                measured[index] = planner.step_costs(config)
            except UserError as error:
                refusals[config.method, config.cut_layer] = str(error)
                measured[index] = None
        return measured[index]

    last = len(configs) - 1
    if not METHODS[configs[0].method].is_split:
        costs = at(0)
        return {} if costs is None else dict.fromkeys(range(last + 1), costs)
    if has_equal_blocks(planner) and is_convex(configs[0]):
        while last > 0 and at(last) is None:  # a head takes blocks that the last cuts leave none of
            last -= 1
        known = {0: at(0)} | (filled_in(at, 1, last) if last else {})
    else:
        known = {index: at(index) for index in range(last + 1)}
    return {index: costs for index, costs in known.items() if costs is not None}


def filled_in(
    at: Callable[[int], StepCosts | None], first: int, last: int
) -> dict[int, StepCosts | None]:
    """Return the costs from ``first`` to ``last``: two points and the ends' line where it holds."""
    low, high = at(first), at(last)
    if last - first < 2:
        return {first: low, last: high}
    near = at(first + 1)
    if low is not None and near is not None and high is not None:
        line = {
            index: _between(low, high, index - first, last - first)
            for index in range(first, last + 1)
        }
        if line[first + 1] == near and None not in line.values():
            return {**line}
    middle = (first + last) // 2
    return filled_in(at, first, middle) | filled_in(at, middle, last)


def has_equal_blocks(planner: Planner) -> bool:
    """Say whether every block has the same parameters and attends in the same way."""
    whole = planner.whole
    if not isinstance(whole, WholeLanguageModel):
        return False
    forms = {
        tuple((name, tuple(p.shape), p.requires_grad) for name, p in block.named_parameters())
        for block in whole.family.blocks_of(whole.inner)
    }
    return len(forms) == 1 and len(set(getattr(whole.inner.config, "layer_types", None) or ())) < 2


def is_convex(config: RunConfig) -> bool:
    """Say whether the peak is a convex function of depth; bisection keeps a logarithm of it."""
    return getattr(config.method_config(), "client_backward", "full") == "full"


def _between(low: StepCosts, high: StepCosts, step: int, steps: int) -> StepCosts | None:
    """Return the point of a line, or None if it is not whole."""

    def value(one: int, other: int) -> int | None:
        exact = one + Fraction((other - one) * step, steps)
        return int(exact) if exact.denominator == 1 else None

    kinds = {*low.peak_memory, *high.peak_memory}
    peak = {k: value(low.peak_memory.get(k, 0), high.peak_memory.get(k, 0)) for k in kinds}
    rest = [
        value(low.flops, high.flops),
        value(low.rule_flops, high.rule_flops),
        value(low.peak_memory_bytes, high.peak_memory_bytes),
    ]
    flops, rule_flops, bytes_ = rest
    if flops is None or rule_flops is None or bytes_ is None:
        return None
    whole = {kind: size for kind, size in peak.items() if size}
    if None in peak.values() or sum(whole.values()) != bytes_:
        return None
    return StepCosts(flops, rule_flops, bytes_, whole)
