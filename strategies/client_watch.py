"""Has one client of a run count what a round costs it, where it is computed.

It rides on messages that are sent anyway: the grid asks one client to watch itself and takes its
report off the answers, before they are priced or read. Nothing else of the run changes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from leansplit.strategies.federation import Federation
from leansplit.strategies.flower_records import CostReport
from leansplit.strategies.running import RoundReport


@dataclass(frozen=True, kw_only=True)
class WatchedRound:
    """What one participation cost a client, by its own count.

    Attributes:
        client_id: who counted.
        round: when.
        flops: of all its local steps.
        repeated_flops: of passes that messages alone make necessary; not in ``flops``.
        peak_memory_bytes: live tensor storage at its peak.
        batches: shape of the inputs of each local step.
    """

    client_id: int
    round: int
    flops: int
    repeated_flops: int
    peak_memory_bytes: int
    batches: tuple[tuple[int, ...], ...]


_FIRST_ROUND = 3
_MOST_BATCHES = 64  # the cost of each shape is worked out at the end: a peer must not list many


class ClientWatch:
    """An observer that chooses who counts, once in a run.

    It is the first client that a round asks, in round 3 or later, once that client has taken part
    before, so that its moments exist, and if it fills its batches. (A replica takes the first
    update in round 2, which is what makes its moments.) The first, since in a simulation all
    clients of a worker share one replica, and the first one asked brings it up to date.

    Attributes:
        found: None until a client has reported a whole round.
    """

    def __init__(self) -> None:
        self.found: WatchedRound | None = None
        self._fills_batches: set[int] = set()
        self._most_batches = _MOST_BATCHES
        self._earlier: set[int] = set()
        self._round = 0
        self._asked: set[int] = set()
        self._chosen: int | None = None
        self._reports: list[CostReport] = []

    def on_set_up(self, federation: Federation) -> None:
        """Learn who fills a batch, and watch what crosses."""
        config = federation.plan.config
        size = config.batch_size
        self._most_batches = max(_MOST_BATCHES, getattr(config, "local_steps", 1))
        self._fills_batches = {m for m, n in federation.num_samples.items() if n >= size}
        federation.grid.watch = self

    def on_asked(self, round: int, client_ids: Collection[int]) -> int | None:
        """Take note of a request; return which of its clients is to count, if any."""
        if self.found is not None or not client_ids:
            return None
        if round != self._round:
            first = min(client_ids)
            self._round, self._asked, self._reports = round, set(), []
            is_able = first in self._earlier and first in self._fills_batches
            fits = round >= _FIRST_ROUND and is_able
            self._chosen = first if fits else None
        self._asked |= set(client_ids)
        return self._chosen if self._chosen in client_ids else None

    def on_report(self, round: int, report: CostReport) -> None:
        """Take what the chosen client reports of one message."""
        if round == self._round:
            self._reports.append(report)

    def on_round(self, report: RoundReport) -> bool:
        """Keep the reports of a round that the client finished; go on in any case."""
        if self.found is not None:
            return True
        finished = self._asked - report.failures.keys()
        self._earlier |= finished
        batches: dict[int, tuple[int, ...]] = {}
        for part in self._reports:
            batches |= part.batches
        is_told = 0 < len(batches) <= self._most_batches
        if is_told and self._chosen is not None and self._chosen in finished:
            self.found = WatchedRound(
                client_id=self._chosen,
                round=report.round,
                flops=sum(part.flops for part in self._reports),
                repeated_flops=sum(part.repeated_flops for part in self._reports),
                peak_memory_bytes=max(part.peak_memory_bytes for part in self._reports),
                batches=tuple(batches[step] for step in sorted(batches)),
            )
        return True
