"""A virtual clock: what rounds take on given devices.

A participation of client m with F FLOPs, the bytes that crossed and R round trips takes

    T_m = F / flops + 8 up / uplink + 8 down / downlink + R latency

A round takes the longest of its participations, or their sum where clients work one after the
other. Client-seconds are their sum either way. The server computes in no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leansplit.costs.device import DeviceProfile


@dataclass(frozen=True, kw_only=True)
class Participation:
    """What one client does in one round.

    Attributes:
        flops: that it computes.
        uplink_bytes: that it sends.
        downlink_bytes: that it is sent.
        round_trips: times that it is sent something and answers.
    """

    flops: float
    uplink_bytes: int
    downlink_bytes: int
    round_trips: int


@dataclass(frozen=True)
class Elapsed:
    """What something takes.

    Attributes:
        seconds: from beginning to end.
        client_seconds: that clients are busy, all of them together.
    """

    seconds: float
    client_seconds: float


def round_time(
    work: Mapping[int, Participation], devices: Sequence[DeviceProfile], *, is_sequential: bool
) -> Elapsed:
    """Return what a round takes.

    Args:
        work: client id -> what it does; nobody: no time passes.
        devices: of client 0, 1, ...
        is_sequential: whether clients work one after the other.
    """
    times = [
        devices[m].seconds(
            flops=done.flops,
            uplink_bytes=done.uplink_bytes,
            downlink_bytes=done.downlink_bytes,
            round_trips=done.round_trips,
        )
        for m, done in work.items()
    ]
    busy = sum(times)
    return Elapsed(busy if is_sequential else max(times, default=0.0), busy)
