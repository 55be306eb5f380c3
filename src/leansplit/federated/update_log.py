"""The log of updates: seeds and scalars from which any replica can be brought up to date."""

from __future__ import annotations

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
    """Updates in the order of their rounds. A round that made no update has no entry."""

    def __init__(self) -> None:
        self._updates: list[Update] = []

    def append(self, update: Update) -> None:
        """Add the newest update.

        Raises:
            RunFailedError: if it is not newer than the last.
        """
        if update.round <= self.latest_version:
            raise RunFailedError(
                f"update of round {update.round} follows version {self.latest_version}"
            )
        self._updates.append(update)

    @property
    def latest_version(self) -> int:
        """Round of the newest update; 0 before the first."""
        return self._updates[-1].round if self._updates else 0

    def since(self, version: int) -> tuple[Update, ...]:
        """Return the updates that a replica at ``version`` misses, oldest first."""
        # Rounds rise through the list, so the missing ones are its tail.
        first = len(self._updates)
        while first and self._updates[first - 1].round > version:
            first -= 1
        return tuple(self._updates[first:])

    def __len__(self) -> int:
        return len(self._updates)

    def __iter__(self) -> Iterator[Update]:
        return iter(self._updates)

    def state(self) -> State:
        """Return all updates as a few tensors."""
        return {
            "rounds": torch.tensor([u.round for u in self._updates], dtype=torch.int64),
            "sizes": torch.tensor([len(u.seeds) for u in self._updates], dtype=torch.int64),
            "seeds": torch.tensor([s for u in self._updates for s in u.seeds], dtype=torch.int64),
            "scalars": torch.tensor([v for u in self._updates for v in u.scalars]),
        }

    def load_state_(self, state: State) -> None:
        """Take the updates of :meth:`state` in place of its own."""
        self._updates = []
        sizes = state["sizes"].tolist()
        parts = zip(
            state["rounds"].tolist(),
            state["seeds"].split(sizes),
            state["scalars"].split(sizes),
            strict=True,
        )
        for round, seeds, scalars in parts:
            self.append(Update(round, tuple(seeds.tolist()), tuple(scalars.tolist())))
