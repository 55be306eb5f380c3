"""What ends a run: samples, bytes, a target accuracy or rounds, whichever comes first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from leansplit.errors import UserError

EndedBy = Literal["samples", "bytes", "accuracy", "rounds", "interrupted", "failed"]

MB = 1e6  # bytes
ROUNDING = 1e-9
"""Accuracies are coarser than this; 0.9 * 0.8 exceeds the 0.72 that is meant by less."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run may last; 0 = no such budget. Rounds always end it."""

    rounds: int
    samples: int = 0
    """Training samples seen, summed over clients."""
    megabytes: float = 0.0
    """Traffic of all clients, both directions, set-up included; MB = 1e6 bytes."""
    target_accuracy: float = 0.0
    """A fraction, compared with every evaluation."""

    def __post_init__(self) -> None:
        """Refuse budgets that mean nothing."""
        if self.rounds < 1:
            raise UserError(f"rounds must be at least 1, got {self.rounds}")
        if self.samples < 0:
            raise UserError(f"samples must be at least 0, got {self.samples}")
        if not 0 <= self.megabytes < math.inf:
            raise UserError(
                f"megabytes must be a finite number of at least 0, got {self.megabytes}"
            )
        if not 0 <= self.target_accuracy <= 1:
            raise UserError(
                "target_accuracy must be a fraction in (0, 1], or 0 for none, got "
                f"{self.target_accuracy}"
            )

    @property
    def num_bytes(self) -> int:
        """The budget of traffic in whole bytes; 0 = none."""
        return max(1, round(self.megabytes * MB)) if self.megabytes else 0

    def spent_by(self, samples_seen: int, num_bytes: int) -> EndedBy | None:
        """Return the budget that is spent, samples before bytes if both are, or None."""
        if 0 < self.samples <= samples_seen:
            return "samples"
        if 0 < self.num_bytes <= num_bytes:
            return "bytes"
        return None

    def is_reached(self, accuracy: float) -> bool:
        """Say whether an evaluation is at or above the target."""
        return 0 < self.target_accuracy <= accuracy + ROUNDING

    def share_spent(self, round: int, samples_seen: int, num_bytes: int) -> float:
        """Return the share, in [0, 1], of the budget that will run out first at this pace.

        A target accuracy may end the run before: nobody can tell when.
        """
        shares = [round / self.rounds]
        if self.samples:
            shares.append(samples_seen / self.samples)
        if self.num_bytes:
            shares.append(num_bytes / self.num_bytes)
        return min(1.0, max(shares))
