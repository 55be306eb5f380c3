"""A client's device and network, and how long a participation takes on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leansplit.costs.units import parse_bit_rate, parse_bytes, parse_compute_rate, parse_seconds
from leansplit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What a client has; None = unknown, and what depends on it is not said.

    Attributes:
        memory_bytes: for the client's step.
        uplink_bits: per second.
        downlink_bits: per second.
        latency_s: of a round trip, as ``ping`` shows it.
        flops: per second that the device really reaches.
    """

    memory_bytes: int | None = None
    uplink_bits: float | None = None
    downlink_bits: float | None = None
    latency_s: float | None = None
    flops: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether there is enough to tell times."""
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """The fields that times need and that are not given, as users write them."""
        fields = {
            "--uplink": self.uplink_bits,
            "--downlink": self.downlink_bits,
            "--latency": self.latency_s,
            "--flops": self.flops,
        }
        return [name for name, value in fields.items() if value is None]

    def require_whole(self) -> None:
        """Refuse a profile that has some of the fields that times need, but not all.

        Raises:
            UserError: naming what is missing.
        """
        if 0 < len(self.missing) < 4:
            raise UserError(
                f"the device profile has no {' and no '.join(self.missing)}; times need uplink, "
                "downlink, latency and flops, such as --uplink 10Mbit --downlink 50Mbit "
                "--latency 40ms --flops 50G"
            )

    def fits(self, num_bytes: int) -> bool:
        """Say whether a step of this peak fits; an unknown memory holds all."""
        return self.memory_bytes is None or num_bytes <= self.memory_bytes

    def seconds(
        self, *, flops: float, uplink_bytes: float, downlink_bytes: float, round_trips: float
    ) -> float:
        """Return F / rate + 8 up / uplink + 8 down / downlink + R latency, in seconds.

        Nothing overlaps, the server computes in no time, and links are the client's own.

        Raises:
            ValueError: if the profile lacks a field.
        """
        if (
            self.flops is None
            or self.uplink_bits is None
            or self.downlink_bits is None
            or self.latency_s is None
        ):
            raise ValueError(f"the profile has no {self.missing}")
        return (
            flops / self.flops
            + 8 * uplink_bytes / self.uplink_bits
            + 8 * downlink_bytes / self.downlink_bits
            + round_trips * self.latency_s
        )


def read_profile(values: Mapping[str, str | None], named: str) -> DeviceProfile:
    """Read a profile from text with units.

    Args:
        values: ``memory``, ``uplink``, ``downlink``, ``latency``, ``flops``; what is not there or
            None stays unknown.
        named: what errors call a value, with ``{}`` for its name, such as ``--{}``.

    Raises:
        UserError: for a value that cannot be read, naming it and the units there are.
    """
    readers: dict[str, tuple[str, Callable[[str, str], float]]] = {
        "memory_bytes": ("memory", parse_bytes),
        "uplink_bits": ("uplink", parse_bit_rate),
        "downlink_bits": ("downlink", parse_bit_rate),
        "latency_s": ("latency", parse_seconds),
        "flops": ("flops", parse_compute_rate),
    }
    fields: dict[str, Any] = {
        field: read(named.format(name), text)
        for field, (name, read) in readers.items()
        if (text := values.get(name)) is not None
    }
    return DeviceProfile(**fields)
