import pytest

from leansplit.costs.device import DeviceProfile
from leansplit.costs.units import (
    in_bytes,
    in_memory,
    in_words,
    parse_bit_rate,
    parse_bytes,
    parse_compute_rate,
    parse_seconds,
)
from leansplit.errors import UserError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bytes, "2GiB", 2 * 2**30),
        (parse_bytes, "500MB", 500_000_000),
        (parse_bytes, " 1.5 KiB ", 1536),
        (parse_bytes, "7B", 7),
        (parse_bit_rate, "10Mbit", 1e7),
        (parse_bit_rate, "1Gbit/s", 1e9),
        (parse_bit_rate, "1.5MB/s", 1.2e7),
        (parse_seconds, "40ms", 0.04),
        (parse_seconds, "0", 0.0),
        (parse_seconds, "0ms", 0.0),
        (parse_seconds, "2s", 2.0),
        (parse_compute_rate, "50G", 5e10),
        (parse_compute_rate, "50GFLOPS", 5e10),
        (parse_compute_rate, "5e10", 5e10),
    ],
)
def test_quantities(parse, text, value):
    assert parse("--option", text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_bytes, "2", "--option needs a unit: write it as 2GiB"),
        (parse_bytes, "2gib", "no unit 'gib': did you mean 2GiB?"),
        (parse_bytes, "-1GiB", "--option cannot be '-1GiB'"),
        (parse_bytes, "0GiB", "must be finite and above 0"),
        (parse_bytes, "much", "cannot be 'much'"),
        (parse_bit_rate, "10", "needs a unit"),
        (parse_bit_rate, "10MB", "no unit 'MB'"),
        (parse_seconds, "40", "needs a unit"),
        (parse_compute_rate, "50X", "no unit 'X'"),
    ],
)
def test_what_is_no_quantity(parse, text, message):
    with pytest.raises(UserError) as caught:
        parse("--option", text)
    assert message in str(caught.value)


def test_seconds_by_hand():
    profile = DeviceProfile(uplink_bits=8e6, downlink_bits=16e6, latency_s=0.5, flops=1e9)
    profile.require_whole()
    spent = profile.seconds(flops=2e9, uplink_bytes=3e6, downlink_bytes=4e6, round_trips=2)
    assert spent == 2 + 3 + 2 + 1


def test_a_profile_lacks_all_or_nothing():
    DeviceProfile(memory_bytes=1).require_whole()
    with pytest.raises(UserError, match="no --latency and no --flops"):
        DeviceProfile(uplink_bits=1, downlink_bits=1).require_whole()
    with pytest.raises(ValueError, match="--flops"):
        DeviceProfile(uplink_bits=1, downlink_bits=1, latency_s=0).seconds(
            flops=1, uplink_bytes=1, downlink_bytes=1, round_trips=1
        )


def test_memory():
    assert DeviceProfile().fits(10**18)
    assert DeviceProfile(memory_bytes=5).fits(5) and not DeviceProfile(memory_bytes=5).fits(6)


def test_times_in_words():
    assert [in_words(s) for s in (0.0123, 5.0, 150.0, 7300.0, 200_000.0)] == [
        "12.3 ms", "5 s", "2.5 min", "2.0 h", "2.3 d",
    ]  # fmt: skip


def test_quantities_are_written_with_the_unit_that_suits_them():
    assert [in_memory(n) for n in (0, 512, 2**20, 3 * 2**30)] == [
        *("0 B", "0.50 KiB", "1.00 MiB", "3,072.00 MiB")
    ]
    assert [in_bytes(n) for n in (0, 999, 1000, 2.5e12)] == ["0 B", "999 B", "1.00 kB", "2.50 TB"]
