import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.wire import DIRECTIONS, KINDS, Ledger, LedgerEntry

PRICED = st.dictionaries(st.sampled_from(KINDS), st.integers(0, 10**12), max_size=4)
BOOKINGS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(DIRECTIONS), PRICED),
    max_size=15,
)


def booked(bookings):
    ledger = Ledger()
    for booking in bookings:
        ledger.record(*booking)
    return ledger


def example_ledger():
    return booked(
        [
            (2, 0, "downlink", {"weights": 100, "envelope": 7}),
            (1, 5, "uplink", {"smashed_data": 40, "labels": 8, "envelope": 5}),
            (1, 5, "uplink", {"scalars": 4, "envelope": 3}),
            (1, 4, "downlink", {"scalars": 4, "seeds": 0}),
        ]
    )


def test_totals():
    ledger = example_ledger()
    assert ledger.total_bytes() == 100 + 7 + 40 + 8 + 5 + 4 + 3 + 4
    assert ledger.total_bytes("uplink") == 60
    assert ledger.total_bytes("downlink") == 111
    assert ledger.total_bytes(kind="scalars") == 8
    assert ledger.total_bytes("uplink", "envelope") == 8
    assert ledger.total_bytes("uplink", "weights") == 0


def test_by_kind_lists_what_occurred_in_the_order_of_kinds():
    by_kind = example_ledger().by_kind()
    assert by_kind == {
        "smashed_data": {"uplink_bytes": 40, "downlink_bytes": 0},
        "labels": {"uplink_bytes": 8, "downlink_bytes": 0},
        "scalars": {"uplink_bytes": 4, "downlink_bytes": 4},
        "weights": {"uplink_bytes": 0, "downlink_bytes": 100},
        "envelope": {"uplink_bytes": 8, "downlink_bytes": 7},
    }
    assert list(by_kind) == [kind for kind in KINDS if kind in by_kind]


def test_entries_are_added_up_and_ordered():
    assert list(example_ledger()) == [
        LedgerEntry(1, 4, "downlink", "scalars", 4),
        LedgerEntry(1, 5, "uplink", "envelope", 8),  # two records
        LedgerEntry(1, 5, "uplink", "labels", 8),
        LedgerEntry(1, 5, "uplink", "scalars", 4),
        LedgerEntry(1, 5, "uplink", "smashed_data", 40),
        LedgerEntry(2, 0, "downlink", "envelope", 7),
        LedgerEntry(2, 0, "downlink", "weights", 100),
    ]
    assert len(example_ledger()) == 7


def test_empty():
    ledger = Ledger()
    assert ledger.total_bytes() == 0 and len(ledger) == 0
    assert ledger.by_kind() == {} and list(ledger) == []
    ledger.record(1, 1, "uplink", {"scalars": 0})
    assert len(ledger) == 0


@pytest.mark.parametrize("cell", [(2**63, 1), (1, 2**63), (1, -(2**63) - 1)])
def test_what_cannot_be_packed_is_refused_before_anything_is_booked(cell):
    ledger = example_ledger()
    before = list(ledger)
    with pytest.raises(ValueError, match="64-bit"):
        ledger.record(*cell, "uplink", {"scalars": 4})
    assert list(ledger) == before and ledger.total_bytes() == sum(e.num_bytes for e in before)


@given(BOOKINGS, st.randoms(use_true_random=False))
def test_any_view_adds_up_and_the_order_of_booking_is_forgotten(bookings, random):
    ledger = booked(bookings)
    total = sum(sum(priced.values()) for *_, priced in bookings)
    assert ledger.total_bytes() == total
    assert sum(ledger.total_bytes(direction) for direction in DIRECTIONS) == total
    assert sum(ledger.total_bytes(kind=kind) for kind in KINDS) == total
    entries = list(ledger)
    assert sum(entry.num_bytes for entry in entries) == total
    assert sum(sum(row.values()) for row in ledger.by_kind().values()) == total
    keys = [(e.round, e.client_id, e.direction, e.kind) for e in entries]
    assert keys == sorted(set(keys))
    assert all(entry.num_bytes > 0 for entry in entries)
    for direction, kind in {(e.direction, e.kind) for e in entries}:
        cell = [e.num_bytes for e in entries if (e.direction, e.kind) == (direction, kind)]
        assert sum(cell) == ledger.total_bytes(direction, kind)

    shuffled = list(bookings)
    random.shuffle(shuffled)
    assert list(booked(shuffled)) == entries


@given(BOOKINGS)
def test_columns_are_the_entries_and_a_copy_goes_its_own_way(bookings):
    ledger = booked(bookings)
    columns = ledger.columns()
    assert [LedgerEntry(*cell) for cell in zip(*columns, strict=True)] == list(ledger)
    before, copied = list(ledger), ledger.copy()
    ledger.record(9, 9, "uplink", {"scalars": 1})
    assert list(copied) == before and copied.total_bytes() == ledger.total_bytes() - 1
    copied.record(9, 9, "uplink", {"scalars": 1})
    assert list(copied) == list(ledger) and copied.by_kind() == ledger.by_kind()


@given(BOOKINGS, st.integers(1, 5))
def test_what_is_packed_away_is_still_there(bookings, most_loose):
    loose = booked(bookings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leansplit.wire.ledger._MOST_LOOSE", most_loose)
        packed = booked(bookings)
    assert list(packed) == list(loose)
    assert len(packed) == len(loose)
    assert packed.by_kind() == loose.by_kind()
