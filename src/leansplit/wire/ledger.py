"""The ledger: every encoded byte that crossed, by round, client, direction and kind."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, product

from leansplit.wire.kinds import DIRECTIONS, KINDS, Direction, Kind

_Cell = tuple[int, int, Direction, Kind]
_COLUMNS: list[tuple[Direction, Kind]] = list(product(DIRECTIONS, KINDS))
_MOST_LOOSE = 4096  # entries that are kept where they can still be added to


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
    integers. What was booked long ago is kept in columns, an entry in 32 bytes: a run of thousands
    of rounds has hundreds of thousands.
    """

    def __init__(self) -> None:
        self._cells: dict[_Cell, int] = {}
        self._packed = array("q")  # round, client, place in _COLUMNS and bytes, one after another
        self._totals: dict[tuple[Direction, Kind], int] = {}

    def record(
        self, round: int, client_id: int, direction: Direction, priced: Mapping[Kind, int]
    ) -> None:
        """Book the price of one encoded record.

        Raises:
            ValueError: if round or client are no 64-bit numbers, in which they are kept.
        """
        if not (_is_int64(round) and _is_int64(client_id)):
            raise ValueError(f"round {round} or client {client_id} is no 64-bit number")
        for kind, num_bytes in priced.items():
            if num_bytes:
                cell = (round, client_id, direction, kind)
                self._cells[cell] = self._cells.get(cell, 0) + num_bytes
                total = (direction, kind)
                self._totals[total] = self._totals.get(total, 0) + num_bytes
        if len(self._cells) >= _MOST_LOOSE:
            fields = (
                (r, m, _COLUMNS.index((d, k)), num_bytes)
                for (r, m, d, k), num_bytes in self._cells.items()
            )
            self._packed += array("q", chain.from_iterable(fields))  # all of them, or none
            self._cells.clear()

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
        cells = self._all_cells()
        for cell in sorted(cells):
            yield LedgerEntry(*cell, cells[cell])

    def __len__(self) -> int:
        return len(self._all_cells())

    def _all_cells(self) -> dict[_Cell, int]:
        cells = dict(self._cells)
        fields = iter(self._packed)
        for round, client_id, column, num_bytes in zip(fields, fields, fields, fields, strict=True):
            cell = (round, client_id, *_COLUMNS[column])
            cells[cell] = cells.get(cell, 0) + num_bytes
        return cells


def _is_int64(number: int) -> bool:
    return -(2**63) <= number < 2**63
