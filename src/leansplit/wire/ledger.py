"""The ledger: every encoded byte that crossed, by round, client, direction and kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from leansplit.wire.kinds import DIRECTIONS, KINDS, Direction, Kind


@dataclass(frozen=True)
class LedgerEntry:
    """Bytes of one kind that crossed for one client in one round (round 0 = setup)."""

    round: int
    client_id: int
    direction: Direction
    kind: Kind
    num_bytes: int


class Ledger:
    """An append-only account of traffic.

    Entries of the same round, client, direction and kind are added up. Totals are exact
    integers.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int, Direction, Kind], int] = {}
        self._totals: dict[tuple[Direction, Kind], int] = {}

    def record(
        self, round: int, client_id: int, direction: Direction, priced: Mapping[Kind, int]
    ) -> None:
        """Book the price of one encoded record."""
        for kind, num_bytes in priced.items():
            if num_bytes:
                cell = (round, client_id, direction, kind)
                self._cells[cell] = self._cells.get(cell, 0) + num_bytes
                total = (direction, kind)
                self._totals[total] = self._totals.get(total, 0) + num_bytes

    def add(self, entries: Iterable[LedgerEntry]) -> None:
        """Book what another ledger held."""
        for entry in entries:
            priced = {entry.kind: entry.num_bytes}
            self.record(entry.round, entry.client_id, entry.direction, priced)

    def total_bytes(self, direction: Direction | None = None, kind: Kind | None = None) -> int:
        """Return the bytes that crossed, all or of one direction or kind."""
        return sum(
            value
            for (d, k), value in self._totals.items()
            if direction in (None, d) and kind in (None, k)
        )

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return kind -> {"uplink_bytes", "downlink_bytes"} for the kinds that occurred."""
        return {
            kind: {
                f"{direction}_bytes": self.total_bytes(direction, kind) for direction in DIRECTIONS
            }
            for kind in KINDS
            if self.total_bytes(kind=kind)
        }

    def __iter__(self) -> Iterator[LedgerEntry]:
        """Iterate over all entries in order of round, client, direction and kind."""
        for cell in sorted(self._cells):
            yield LedgerEntry(*cell, self._cells[cell])

    def __len__(self) -> int:
        return len(self._cells)
