import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leansplit.costs.fleet import PRESETS, FleetConfig
from leansplit.errors import UserError

HEADER = "uplink, downlink, latency, flops, memory, availability\n"
ROW = "8Mbit, 1MB/s, 40ms, 5G, 1GiB, 0.5\n"


@pytest.mark.parametrize("name", PRESETS)
def test_clients_of_a_preset_are_alike_and_always_there(name):
    devices = FleetConfig(profile=name).devices(3, 0)
    assert len(set(devices)) == 1
    assert devices[0].is_timed and devices[0].memory_bytes and devices[0].availability == 1.0


def test_spread_varies_rates_around_the_preset_and_nothing_else():
    plain = FleetConfig(profile="mobile").devices(2_000, 0)[0]
    fleet = FleetConfig(profile="mobile", spread=0.5, memory="1MiB", availability=0.25)
    devices = fleet.devices(2_000, 0)
    assert devices == fleet.devices(2_000, 0) != fleet.devices(2_000, 1)
    assert devices[:5] == fleet.devices(5, 0)  # how many others there are changes nobody
    for name in ("flops", "uplink_bits", "downlink_bits"):
        rates = [getattr(device, name) for device in devices]
        assert statistics.median(rates) == pytest.approx(getattr(plain, name), rel=0.1)
    rest = {(d.latency_s, d.memory_bytes, d.availability) for d in devices}
    assert rest == {(0.05, 2**20, 0.25)}


def test_stragglers_are_slower_in_everything_but_latency():
    usual = FleetConfig(profile="broadband").devices(1, 0)[0]
    devices = FleetConfig(profile="broadband", stragglers=0.2, slowdown=4).devices(10, 3)
    slow = [device for device in devices if device != usual]
    assert len(slow) == 2
    assert (slow[0].flops, slow[0].uplink_bits, slow[0].downlink_bits) == (25e9, 5e6, 25e6)
    assert slow[0].latency_s == usual.latency_s


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_with_more_stragglers_no_client_is_faster(some, others, seed):
    few, many = (
        FleetConfig(profile="mobile", spread=0.3, stragglers=share).devices(20, seed)
        for share in sorted((some, others))
    )
    work = {"flops": 1e9, "uplink_bytes": 1e6, "downlink_bytes": 1e6, "round_trips": 2}
    for before, after in zip(few, many, strict=True):
        assert before.seconds(**work) <= after.seconds(**work)


def test_a_table_says_what_each_client_has(tmp_path):
    table = tmp_path / "devices.csv"
    table.write_text(HEADER + ROW + "1Mbit, 1Mbit, 0, 1G, ,\n")
    fleet = FleetConfig(profile=str(table))
    first, second = fleet.devices(2, 0)
    assert (first.uplink_bits, first.downlink_bits, first.latency_s) == (8e6, 8e6, 0.04)
    assert (first.flops, first.memory_bytes, first.availability) == (5e9, 2**30, 0.5)
    assert second.memory_bytes is None and second.availability == 1.0
    before = fleet.digest()
    table.write_text(HEADER + ROW + ROW)
    assert fleet.digest() != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "8Mbit, 1MB/s, 40ms, , 1GiB, 0.5\n" + ROW, "row 1: has no flops"),
        (HEADER + ROW + "8Mb, 1MB/s, 40ms, 5G, 1GiB, 0.5\n", "row 2: uplink has no unit 'Mb'"),
        (HEADER + ROW + "8, 1MB/s, 40ms, 5G, 1GiB, 0.5\n", "row 2: uplink needs a unit"),
        (HEADER + ROW + "8Mbit, 1MB/s, 40, 5G, 1GiB, 0.5\n", "row 2: latency needs a unit"),
        (HEADER + ROW + "8Mbit, 1MB/s, 40ms, 5G, 1GiB, 1.5\n", r"row 2: availability .* \(0, 1\]"),
        (HEADER + ROW + ROW[:-1] + ", 7\n", "row 2: has more cells"),
        (HEADER + ROW, "has 1 rows for 2 clients"),
        ("uplink, latency, flops\n", "has no column downlink"),
        ("uplink, down, latency, flops\n", "unknown column 'down'; did you mean 'downlink'"),
        ("", "has no column uplink and no downlink"),
    ],
)
def test_a_table_with_a_mistake_is_refused_by_its_place(tmp_path, content, message):
    table = tmp_path / "devices.csv"
    table.write_text(content)
    with pytest.raises(UserError, match=message):
        FleetConfig(profile=str(table)).devices(2, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stragglers": 0.2}, "needs a profile: datacentre"),
        ({"profile": "mobil"}, "'mobil' is none of datacentre"),
        ({"profile": "mobile", "stragglers": 1.2}, r"stragglers must be in \[0, 1\]"),
        ({"profile": "mobile", "slowdown": 0.5}, "slowdown must be at least 1"),
        ({"profile": "mobile", "spread": -1.0}, "spread must be at least 0"),
        ({"profile": "mobile", "memory": "2gb"}, "did you mean 2GB"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        FleetConfig(**settings).devices(2, 0)
