"""Why a client does not count in a step, and how many must: the rule is in docs/faults.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from leansplit.errors import RunFailedError, UserError
from leansplit.shares import at_least
from leansplit.strategies.flower_records import NO_PLAN, printable
from leansplit.wire import DecodeError, Rejection

T = TypeVar("T")

SILENT: Final = "no answer in time"
"""The reason of a client that is not heard of, or that is too late."""


@dataclass(frozen=True)
class Failure:
    """Why a client was dropped from a step.

    Attributes:
        reason: for readers; of what a peer says, beginning and end, on one line.
        kind: counted as the event ``dropped_<kind>``. ``silent``: nothing in time; ``error``: the
            client says that it failed; ``node``: its node or process failed; ``replica``: its
            replica cannot be mended, or its work not be rebuilt; ``report``: what its node says at
            a second set-up is refused; ``quorum``: too few others answered; any other: its answer
            was refused.
        lacks_plan: whether it is a node's word that it must be set up again.
    """

    reason: str
    kind: Literal["silent", "error", "node", "replica", "report", "quorum"] | Rejection
    lacks_plan: bool = False

    def __post_init__(self) -> None:
        """Keep of the reason what a log can take: much of it may be a peer's own words."""
        object.__setattr__(self, "reason", printable(self.reason))

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason

    @classmethod
    def refused(cls, error: DecodeError) -> Failure:
        """Return the failure of a client whose answer is not what was asked for."""
        return cls(f"its answer is not what was asked for: {error}", error.rejection)

    @classmethod
    def reported(cls, reason: str) -> Failure:
        """Return the failure that a client reports of itself."""
        if NO_PLAN in reason:
            return cls.of_node(reason)
        return cls(reason, "silent" if SILENT in reason else "error")

    @classmethod
    def of_node(cls, reason: str) -> Failure:
        """Return the failure of a client whose node, or its process, failed as a whole."""
        is_silent = SILENT in reason
        return cls(reason, "silent" if is_silent else "node", lacks_plan=NO_PLAN in reason)


class QuorumLostError(RunFailedError):
    """Too few clients answered in several rounds in a row; the run can go on from a checkpoint."""


@dataclass(frozen=True)
class Quorum:
    """How many of the clients that are asked must answer for a round to count.

    Attributes:
        share: of those asked; whatever it is, one must.
        patience: rounds in a row without a quorum that end the run.
    """

    share: float
    patience: int

    def __post_init__(self) -> None:
        """Refuse what is no share, or no patience at all."""
        if not 0 <= self.share <= 1:
            raise UserError(f"quorum must be in [0, 1], got {self.share}")
        if self.patience < 1:
            raise UserError(f"quorum_rounds must be at least 1, got {self.patience}")

    def of(
        self, answered: dict[int, T], failures: Mapping[int, Failure], num_asked: int
    ) -> tuple[dict[int, T], dict[int, Failure]]:
        """Return (answers, failures); no answers at all if those that came are too few."""
        needed = at_least(self.share, num_asked)
        dropped = dict(failures)
        if len(answered) < needed:
            reason = f"{len(answered)} of {num_asked} answered, and the quorum is {needed}"
            dropped |= dict.fromkeys(answered, Failure(reason, "quorum"))
            answered = {}
        return answered, dict(sorted(dropped.items()))
