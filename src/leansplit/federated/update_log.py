"""The log of updates: seeds and scalars from which any replica can be brought up to date."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from leansplit.errors import RunFailedError
from leansplit.state import State


@dataclass(frozen=True)
class Update:
    """One round's update of every client model: 8 P bytes on the wire for each of its steps.

    Attributes:
        round: the round that made it, 1-based.
        seeds: P perturbation seeds for each step, 32 bits each; step after step.
        scalars: as many mean directional differences, exactly representable in float32.
    """

    round: int
    seeds: tuple[int, ...]
    scalars: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse an update whose seeds and scalars do not pair up."""
        if len(self.seeds) != len(self.scalars) or not self.seeds:
            raise RunFailedError(
                f"update of round {self.round} has {len(self.seeds)} seeds "
                f"and {len(self.scalars)} scalars"
            )


class UpdateLog:
    """Updates in the order of their rounds. A round that made no update has no entry.

    All of a run hold equally many directions, so they are kept as in an encoded message: 8 bytes
    for each direction and 8 for each round.

    Attributes:
        latest_version: round of the newest update, whether it is still kept; 0 before the first.
        base_version: the oldest version from which the log still leads to the newest: the newest
            round that was dropped, or 0.
    """

    def __init__(self) -> None:
        self.latest_version = 0
        self.base_version = 0
        self._rounds, self._seeds, self._scalars = array("q"), array("I"), array("f")

    def append(self, update: Update) -> None:
        """Add the newest update.

        Raises:
            RunFailedError: if it is not newer than the last, or holds more or fewer directions.
        """
        if update.round <= self.latest_version:
            raise RunFailedError(
                f"update of round {update.round} follows version {self.latest_version}"
            )
        if len(self) and len(update.seeds) != self._width:
            raise RunFailedError(
                f"update of round {update.round} has {len(update.seeds)} directions, those before "
                f"have {self._width}"
            )
        self._rounds.append(update.round)
        self._seeds.extend(update.seeds)
        self._scalars.extend(update.scalars)
        self.latest_version = update.round

    def since(self, version: int) -> tuple[Update, ...]:
        """Return the updates that a replica at ``version`` misses, oldest first.

        Raises:
            RunFailedError: if some of them were dropped.
        """
        if max(version, 0) < self.base_version:
            raise RunFailedError(
                f"updates since version {version} are gone; the log begins after "
                f"{self.base_version}"
            )
        return tuple(map(self._at, range(bisect_right(self._rounds, version), len(self))))

    def drop_until(self, version: int) -> None:
        """Forget the updates that a replica at ``version`` has taken."""
        count = bisect_right(self._rounds, version)
        if count:
            self.base_version = self._rounds[count - 1]
            width = self._width
            del self._rounds[:count], self._seeds[: count * width], self._scalars[: count * width]

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest ``count`` updates."""
        if count < len(self):
            self.drop_until(self._rounds[len(self) - count - 1])

    @property
    def _width(self) -> int:
        return len(self._seeds) // len(self._rounds)

    def _at(self, index: int) -> Update:
        part = slice(index * self._width, (index + 1) * self._width)
        return Update(self._rounds[index], tuple(self._seeds[part]), tuple(self._scalars[part]))

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[Update]:
        return map(self._at, range(len(self)))

    def state(self) -> State:
        """Return all updates as a few tensors, and where the log begins and ends."""
        return {
            "rounds": torch.tensor(self._rounds.tolist(), dtype=torch.int64),
            "seeds": torch.tensor(self._seeds.tolist(), dtype=torch.int64),
            "scalars": torch.tensor(self._scalars.tolist()),
            "latest_version": self.latest_version,
            "base_version": self.base_version,
        }

    def load_state_(self, state: State) -> None:
        """Take the updates of :meth:`state` in place of its own."""
        self._rounds = array("q", state["rounds"].tolist())
        self._seeds = array("I", state["seeds"].tolist())
        self._scalars = array("f", state["scalars"].tolist())
        # A log of before they could be dropped names neither end, and is whole.
        self.latest_version = state.get("latest_version", max(self._rounds, default=0))
        self.base_version = state.get("base_version", 0)
