"""What clients remember, kept safe at the server: asked for at checkpoints, given back afterwards.

Where one process simulates all clients (``replica_storage = worker``) this is the simulator's own
business and costs nothing: real clients would not have died with the server. Elsewhere clients
come back with empty memories. What the server can send again it sends again; only clients that
hold something that nobody else knows (:attr:`RunningStrategy.clients_keep_state`) are asked for it,
and both ways are booked under the kind ``checkpoint``.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from leansplit.state import State
from leansplit.strategies.federation import Federation
from leansplit.wire import DepositReply, DepositRequest, RestoreReply, RestoreRequest, decode_as

_MOST_MEMORIES = 1024  # that one client keeps, each under a name
log = logging.getLogger("leansplit")


class Deposits:
    """The newest deposit of every client that has made one.

    Args:
        is_simulation: whether all clients live in processes of this run's own, and end with it.
        clients_keep_state: whether clients hold what the server could not send again.

    Attributes:
        missing: clients that were asked and did not answer: what they hold is nowhere else.
    """

    def __init__(self, *, is_simulation: bool, clients_keep_state: bool) -> None:
        self._is_simulation = is_simulation
        self._is_needed = is_simulation or clients_keep_state
        self._kept: dict[int, DepositReply] = {}
        self.missing: set[int] = set()

    def unbooked(self, federation: Federation) -> AbstractContextManager[None]:
        """Return the block in which what only a simulator does is not booked."""
        return federation.grid.unbooked() if self._is_simulation else nullcontext()

    def collect(self, federation: Federation, round: int) -> None:
        """Ask every client that was sent anything since the last time, and those still missing."""
        grid = federation.grid
        if not self._is_needed:
            return
        asked = sorted(grid.contacted | self.missing)
        with self.unbooked(federation):
            replies = federation.exchange(
                dict.fromkeys(asked, DepositRequest()),
                "deposit",
                round,
                lambda _, blob: decode_as(blob, DepositReply, _MOST_MEMORIES),
            )
        for m in asked:
            self._kept.pop(m, None)
        self._kept |= replies.records
        self.missing = set(replies.failures)
        grid.contacted.clear()

    def restore(self, federation: Federation, round: int) -> tuple[list[int], int]:
        """Give every client its deposit back.

        Returns:
            (the clients that come back without their memory, how many of them held something that
            only they knew).
        """
        requests = {
            m: RestoreRequest(memory=deposit.memory, notes=deposit.notes)
            for m, deposit in sorted(self._kept.items())
        }
        with self.unbooked(federation):
            replies = federation.exchange(
                requests, "restore", round, lambda _, blob: decode_as(blob, RestoreReply, 0)
            )
        for m in replies.failures:
            del self._kept[m]
        num_lost = len(replies.failures.keys() | self.missing)
        self.missing = set()
        federation.grid.contacted.clear()
        return [m for m in federation.population if m not in self._kept], num_lost

    def state(self) -> State:
        """Return all deposits."""
        return {
            "missing": sorted(self.missing),
            "kept": {
                m: {"memory": dict(deposit.memory), "notes": dict(deposit.notes)}
                for m, deposit in self._kept.items()
            },
        }

    def load_state_(self, state: State) -> None:
        """Take the deposits of :meth:`state`."""
        self.missing = set(state["missing"])
        self._kept = {
            int(m): DepositReply(
                memory={k: v.to(torch.uint8) for k, v in deposit["memory"].items()},
                notes=dict(deposit["notes"]),
            )
            for m, deposit in state["kept"].items()
        }
