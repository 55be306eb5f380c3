"""Faults that a run injects into itself, to study what they cost: functions of (seed, round, who).

What the server does about a fault does not depend on whether it was injected; see docs/faults.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from leansplit.errors import UserError
from leansplit.noise import derive_seed

Fault = Literal["drop", "vanish", "error", "late", "die"]

_EVERY = 2**64  # seeds are uniform below this


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """How often each kind of fault happens; each rate is a chance in [0, 1]."""

    drop: float = 0.0
    """Chance that a client is away for a whole round."""
    vanish: float = 0.0
    """Chance that a client answers the first exchange of a round and no other of that round;
    nothing happens where a round has one exchange."""
    error: float = 0.0
    """Chance, in each exchange, that a client's step raises an error."""
    late: float = 0.0
    """Chance, in each exchange, that a client does its work but answers after the deadline."""
    die: float = 0.0
    """Chance, in each exchange, that the process that computes for a client dies."""
    twice: float = 0.0
    """Chance that all messages of a client in a round arrive twice, and once more too late."""

    def __post_init__(self) -> None:
        """Refuse what is no chance, or chances that exclude each other and exceed 1."""
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise UserError(f"{field.name} must be in [0, 1], got {getattr(self, field.name)}")
        for names in (("drop", "vanish"), ("error", "late", "die")):
            if sum(getattr(self, name) for name in names) > 1:
                raise UserError(f"{' + '.join(names)} must be at most 1: they exclude each other")

    @property
    def are_any(self) -> bool:
        """Whether anything is injected."""
        return any(getattr(self, field.name) for field in dataclasses.fields(self))

    def strikes(self, root_seed: int, round: int, client_id: int, exchange: int) -> Fault | None:
        """Return what happens to a client in an exchange of a round; 0 is the round's first."""
        drawn = derive_seed(root_seed, "fault-round", round=round, client_id=client_id) / _EVERY
        if drawn < self.drop:
            return "drop"
        if drawn < self.drop + self.vanish and exchange:
            return "vanish"
        seed = derive_seed(
            root_seed, "fault-exchange", round=round, client_id=client_id, local_step=exchange
        )
        kinds: tuple[Fault, ...] = ("error", "late", "die")
        end = 0.0
        for kind in kinds:
            end += getattr(self, kind)
            if seed / _EVERY < end:
                return kind
        return None

    def repeats(self, root_seed: int, round: int, client_id: int) -> bool:
        """Say whether a client's messages of a round arrive twice."""
        seed = derive_seed(root_seed, "fault-twice", round=round, client_id=client_id)
        return seed / _EVERY < self.twice
