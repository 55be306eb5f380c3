"""Which settings `leansplit tune` tries: the same number for every method.

The rule. Every method gets exactly ``max_settings`` settings, spread over what it has to tune:

- A zeroth-order client tries each entry of ``zeroth_client`` (momentum SGD and AdamW) with an equal
  share of the settings. Any other method keeps the optimizers of the experiment.
- A share is a grid of client rates times server rates, as square as its size allows, with the more
  values on the client's side. A method that has only one of the two rates spends its whole share on
  that one: a finer grid. A list of one value fixes a rate and counts as none.
- A list of as many values as are needed is used as it is. Any other list gives its two ends, and
  the values between them are spaced geometrically.

If the best setting lacks a neighbour, one step down or up on one of its rates, it lies at the edge:
its missing neighbours are tried, and so on up to ``max_extensions`` times. Beyond the ends one step
is the mean step of the list as it is written, so that a finer grid does not reach less far, but at
most a factor of 10: the ends of a long range say nothing of how far its best may be.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leansplit.errors import UserError
from leansplit.experiments.tuning_config import ClientChoice, Tuning
from leansplit.server_app.methods import is_used

CLIENT_RATE, SERVER_RATE = "client.lr", "server.lr"
_LONGEST_STEP = 10.0


@dataclass(frozen=True)
class Axis:
    """One learning rate's values, ascending; indices beyond them go on in steps of ``step``."""

    key: str
    values: tuple[float, ...]
    step: float

    def value(self, index: int) -> float:
        """Return the rate at ``index``, which may lie beyond the grid."""
        last = len(self.values) - 1
        if index < 0:
            return _rounded(self.values[0] * self.step**index)
        if index > last:
            return _rounded(self.values[last] * self.step ** (index - last))
        return self.values[index]


@dataclass(frozen=True)
class Block:
    """A method's share of settings with one client optimizer."""

    fixed: Mapping[str, Any]
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Point:
    """A setting: a block and an index on each of its axes."""

    block: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """All settings of one method."""

    blocks: tuple[Block, ...]

    @property
    def points(self) -> list[Point]:
        """The settings before any extension."""
        return [
            Point(number, indices)
            for number, block in enumerate(self.blocks)
            for indices in itertools.product(*(range(len(axis.values)) for axis in block.axes))
        ]

    def settings(self, point: Point) -> dict[str, Any]:
        """Return the run keys of a point."""
        block = self.blocks[point.block]
        rates = {
            axis.key: axis.value(index)
            for axis, index in zip(block.axes, point.indices, strict=True)
        }
        return {**block.fixed, **rates}

    def neighbours(self, point: Point) -> list[Point]:
        """Return the points one step down and up on each rate, inside the grid or beyond it."""
        found = []
        for position, index in enumerate(point.indices):
            for moved in (index - 1, index + 1):
                indices = (*point.indices[:position], moved, *point.indices[position + 1 :])
                found.append(Point(point.block, indices))
        return found


def method_grid(method: str, tuning: Tuning, choices: Sequence[ClientChoice]) -> Grid:
    """Return the grid of a method.

    Args:
        method: its name.
        tuning: rates and number of settings.
        choices: optimizers that its client tries; empty = that of the experiment.

    Raises:
        UserError: if the number of settings cannot be spread evenly.
    """
    if not choices:
        choices = (ClientChoice(keys={}, rates=tuning.client_lr),)
    share, rest = divmod(tuning.max_settings, len(choices))
    if rest or not share:
        raise UserError(
            f"tuning.max_settings = {tuning.max_settings} cannot be shared equally by "
            f"{len(choices)} client optimizers; take a multiple, such as 12"
        )
    return Grid(tuple(_block(method, choice, tuning, share) for choice in choices))


def _block(method: str, choice: ClientChoice, tuning: Tuning, share: int) -> Block:
    lists = {CLIENT_RATE: choice.rates, SERVER_RATE: tuning.server_lr}
    lists = {key: values for key, values in lists.items() if is_used(method, key)}
    fixed = {key: values[0] for key, values in lists.items() if len(values) == 1}
    tuned = {key: values for key, values in lists.items() if len(values) > 1}
    axes = tuple(
        Axis(key, _resampled(values, count), _step_beyond(values))
        for (key, values), count in zip(tuned.items(), _counts(share, len(tuned)), strict=True)
    )
    return Block({**choice.keys, **fixed}, axes)


def _step_beyond(values: tuple[float, ...]) -> float:
    mean_step: float = (values[-1] / values[0]) ** (1 / (len(values) - 1))
    return min(mean_step, _LONGEST_STEP)


def _counts(share: int, num_axes: int) -> tuple[int, ...]:
    """Return how many values each rate gets; their product is ``share``."""
    if num_axes < 2:
        return (share,) * num_axes
    fewer = max(d for d in range(1, int(share**0.5) + 1) if share % d == 0)
    if fewer < 2:
        raise UserError(
            f"{share} settings for one client optimizer are no grid of client and server rates: "
            "take a tuning.max_settings that leaves each a product such as 2 x 2, 3 x 2 or 4 x 3 "
            "(12 does)"
        )
    return share // fewer, fewer


def _resampled(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    if len(values) == count:
        return values
    if count == 1:
        return (_rounded((values[0] * values[-1]) ** 0.5),)
    step = (values[-1] / values[0]) ** (1 / (count - 1))
    between = (_rounded(values[0] * step**i) for i in range(1, count - 1))
    return (values[0], *between, values[-1])


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
