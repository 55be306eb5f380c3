"""The ledger: every encoded byte that crossed, by round, client, direction and kind."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leansplit.wire.kinds import DIRECTIONS, KINDS, Direction, Kind

_Cell = tuple[int, int, Direction, Kind]
_COLUMNS: list[tuple[Direction, Kind]] = list(product(DIRECTIONS, KINDS))
_SORTED = sorted(_COLUMNS)
_RANKS = np.array([_SORTED.index(column) for column in _COLUMNS])
_DIRECTION_AT = np.array([direction for direction, _ in _SORTED], object)
_KIND_AT = np.array([kind for _, kind in _SORTED], object)
_MOST_LOOSE = 4096  # entries that are kept where they can still be added to


@dataclass(frozen=True)
class LedgerEntry:
    """Bytes of one kind that crossed for one client in one round (round 0 = setup)."""

    round: int
    client_id: int
    direction: Direction
    kind: Kind
    num_bytes: int


class LedgerColumns(NamedTuple):
    """The entries of a ledger, as one array for each field of :class:`LedgerEntry`."""

    rounds: NDArray[np.int64]
    client_ids: NDArray[np.int64]
    directions: NDArray[np.object_]
    kinds: NDArray[np.object_]
    num_bytes: NDArray[np.int64]


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

    def columns(self) -> LedgerColumns:
        """Return all entries in order of round, client, direction and kind, column by column."""
        loose = [(r, m, _COLUMNS.index((d, k)), n) for (r, m, d, k), n in self._cells.items()]
        packed = np.array(self._packed, np.int64).reshape(-1, 4)
        booked = np.concatenate([packed, np.array(loose, np.int64).reshape(-1, 4)])
        booked[:, 2] = _RANKS[booked[:, 2]]
        booked = booked[np.lexsort(booked[:, 2::-1].T)]
        is_new = np.ones(len(booked), bool)  # unlike the one before
        is_new[1:] = (booked[1:, :3] != booked[:-1, :3]).any(axis=1)
        [starts] = is_new.nonzero()
        sums = np.add.reduceat(booked[:, 3], starts) if len(starts) else booked[:, 3]
        rounds, client_ids, places, _ = booked[starts].T
        return LedgerColumns(rounds, client_ids, _DIRECTION_AT[places], _KIND_AT[places], sums)

    def copy(self) -> Ledger:
        """Return a ledger of its own with all that is booked so far."""
        other = Ledger()
        other._cells, other._totals = dict(self._cells), dict(self._totals)
        other._packed = self._packed[:]
        return other

    def __iter__(self) -> Iterator[LedgerEntry]:
        """Iterate over all entries in order of round, client, direction and kind."""
        columns = self.columns()
        for first in range(0, len(columns.rounds), _MOST_LOOSE):  # never all of them as objects
            part = slice(first, first + _MOST_LOOSE)
            for cell in zip(*(column[part].tolist() for column in columns), strict=True):
                yield LedgerEntry(*cell)

    def __len__(self) -> int:
        return len(self.columns().rounds)


def _is_int64(number: int) -> bool:
    return -(2**63) <= number < 2**63
