import pytest

from leansplit.costs.clock import Elapsed, Participation, round_time
from leansplit.costs.device import DeviceProfile

FAST = DeviceProfile(flops=1e9, uplink_bits=8e6, downlink_bits=16e6, latency_s=0.5)
SLOW = DeviceProfile(flops=2e8, uplink_bits=1e6, downlink_bits=2e6, latency_s=0.5)
# 2e9 FLOPs, 1 MB up, 2 MB down, 3 round trips: FAST 2 + 1 + 1 + 1.5, SLOW 10 + 8 + 8 + 1.5
WORK = Participation(flops=2e9, uplink_bytes=1_000_000, downlink_bytes=2_000_000, round_trips=3)


@pytest.mark.parametrize(
    ("is_sequential", "elapsed"), [(False, Elapsed(27.5, 33.0)), (True, Elapsed(33.0, 33.0))]
)
def test_a_round_by_hand(is_sequential, elapsed):
    """At the same time the slowest counts, in turn all of them; clients are as busy either way."""
    assert round_time({0: WORK, 1: WORK}, [FAST, SLOW], is_sequential=is_sequential) == elapsed


def test_a_round_without_clients_takes_no_time():
    assert round_time({}, [FAST], is_sequential=False) == Elapsed(0.0, 0.0)
