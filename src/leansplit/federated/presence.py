"""Which clients are there in a round: the server's affair, drawn without asking anyone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from leansplit.noise import derive_seed, first_uniforms


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Who can take part; by default everybody, always.

    Attributes:
        excluded: clients that never do.
        availability: chance of client 0, 1, ... to be there in a round, drawn afresh for each;
            empty = all of them always are.
    """

    excluded: frozenset[int] = frozenset()
    availability: tuple[float, ...] = ()

    def those_there(self, root_seed: int, round: int, population: Iterable[int]) -> list[int]:
        """Return the clients of ``population`` that are there in ``round``, ascending.

        Any round can be drawn without drawing the earlier ones. A client with a higher chance is
        there in all the rounds in which it would have been with a lower one.
        """
        able = sorted(set(population) - self.excluded if self.excluded else population)
        if not self.availability:
            return able
        seeds = [derive_seed(root_seed, "availability", round=round, client_id=m) for m in able]
        drawn = zip(able, first_uniforms(seeds), strict=True)
        return [m for m, x in drawn if x < self.availability[m]]
