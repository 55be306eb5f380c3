"""The devices and networks of a run's clients: presets, drawn variation, or a table."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from leansplit.costs.device import DeviceProfile, read_profile
from leansplit.costs.units import parse_bytes
from leansplit.errors import UserError, did_you_mean, require_positive
from leansplit.noise import derive_seed, numpy_generator

PRESETS: Final[Mapping[str, Mapping[str, str]]] = {
    "datacentre": {
        "memory": "40GiB",
        "uplink": "10Gbit",
        "downlink": "10Gbit",
        "latency": "1ms",
        "flops": "10T",
    },
    "broadband": {
        "memory": "8GiB",
        "uplink": "20Mbit",
        "downlink": "100Mbit",
        "latency": "20ms",
        "flops": "100G",
    },
    "mobile": {
        "memory": "2GiB",
        "uplink": "3Mbit",
        "downlink": "35Mbit",
        "latency": "50ms",
        "flops": "10G",
    },
}
"""Round figures; docs/simulated-time.md says where they come from."""

_NEEDED = ("uplink", "downlink", "latency", "flops")
_COLUMNS = (*_NEEDED, "memory", "availability")


@dataclass(frozen=True, kw_only=True)
class Device(DeviceProfile):
    """What one client has.

    Attributes:
        availability: chance to be there in a round, in (0, 1].
    """

    availability: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """The devices of a run's clients. They decide who can take part, and how long it would take."""

    profile: str = ""
    """Devices and networks of the clients, for simulated time (docs/simulated-time.md):
    ``datacentre``, ``broadband``, ``mobile``, or a CSV file with one row for each client; empty =
    no devices, no times."""
    spread: float = 0.0
    """Clients differ: sigma of the log-normal factors, with median 1, on each client's compute
    rate, uplink and downlink; 0 = they do not."""
    stragglers: float = 0.0
    """Share of the clients, in [0, 1], that are slower than the others."""
    slowdown: float = 5.0
    """How many times slower stragglers compute, send and receive."""
    availability: float = 0.0
    """Chance that a client is there in a round, for all of them; 0 = the profile's."""
    memory: str = ""
    """Memory for a client's step, such as ``512MiB``, for all of them; empty = the profile's."""

    def __post_init__(self) -> None:
        """Refuse values that no devices can have."""
        if not 0 <= self.spread < math.inf:
            raise UserError(f"spread must be at least 0, got {self.spread}")
        for name in ("stragglers", "availability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not require_positive("slowdown", self.slowdown) >= 1:
            raise UserError(f"slowdown must be at least 1, got {self.slowdown}")
        if self.memory:
            parse_bytes("memory", self.memory)
        if not self.profile and any(
            getattr(self, field.name) != field.default for field in dataclasses.fields(self)
        ):
            raise UserError(f"needs a profile: {', '.join(PRESETS)}, or a CSV file")

    def __str__(self) -> str:
        """Return it as ``leansplit report --fleet`` reads it: the profile and what is not usual."""
        fields = [field for field in dataclasses.fields(self) if field.name != "profile"]
        changed = [field.name for field in fields if getattr(self, field.name) != field.default]
        return ",".join([self.profile, *(f"{name}={getattr(self, name)}" for name in changed)])

    @property
    def is_file(self) -> bool:
        """Whether the devices come from a table."""
        return bool(self.profile) and self.profile not in PRESETS

    def digest(self) -> str:
        """Return 16 hex digits that name the content of the table; empty for presets.

        Raises:
            UserError: if it cannot be read.
        """
        if not self.is_file:
            return ""
        return hashlib.blake2b(_content(self.profile).encode(), digest_size=8).hexdigest()

    def devices(self, num_clients: int, root_seed: int) -> tuple[Device, ...]:
        """Return the devices of client 0, 1, ...: a function of configuration and seed.

        With more stragglers, those that there were before still are.

        Raises:
            UserError: if the table cannot be read, has another number of rows, or a row lacks a
                field or has one that cannot be read.
        """
        if self.is_file:
            devices = _listed(self.profile, num_clients)
        else:
            preset = read_profile(PRESETS[self.profile], "{}")
            devices = [Device(**dataclasses.asdict(preset))] * num_clients
        order = numpy_generator(derive_seed(root_seed, "stragglers")).permutation(num_clients)
        slow = set(order[: round(self.stragglers * num_clients)].tolist())
        return tuple(
            self._varied(device, root_seed, m, self.slowdown if m in slow else 1.0)
            for m, device in enumerate(devices)
        )

    def _varied(self, device: Device, root_seed: int, client_id: int, slowdown: float) -> Device:
        seed = derive_seed(root_seed, "device", client_id=client_id)
        drawn = numpy_generator(seed).standard_normal(3)
        compute, up, down = (math.exp(self.spread * value) / slowdown for value in drawn)
        assert device.flops is not None
        assert device.uplink_bits is not None and device.downlink_bits is not None
        memory = parse_bytes("memory", self.memory) if self.memory else device.memory_bytes
        return Device(
            memory_bytes=memory,
            uplink_bits=device.uplink_bits * up,
            downlink_bits=device.downlink_bits * down,
            latency_s=device.latency_s,
            flops=device.flops * compute,
            availability=self.availability or device.availability,
        )


def _content(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"fleet.profile {path!r} is none of {', '.join(PRESETS)}, and cannot be read as a CSV "
            f"file with one row for each client ({reason})"
        ) from error


def _listed(path: str, num_clients: int) -> list[Device]:
    """Read a table of devices."""
    try:
        reader = csv.DictReader(_content(path).splitlines(), skipinitialspace=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a CSV file: {error}") from error
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(f"{path} has the column {' and '.join(twice)} more than once")
    for name in columns:
        if name not in _COLUMNS:
            hint = did_you_mean(name, _COLUMNS)
            raise UserError(f"{path} has an unknown column {name!r}; {hint}")
    if missing := [name for name in _NEEDED if name not in columns]:
        raise UserError(
            f"{path} has no column {' and no '.join(missing)}; it needs {', '.join(_NEEDED)}, and "
            "may have memory and availability"
        )
    if len(rows) != num_clients:
        raise UserError(
            f"{path} has {len(rows)} rows for {num_clients} clients; write one for each"
        )
    return [_device(f"{path}, row {index}", row) for index, row in enumerate(rows, start=1)]


def _device(place: str, row: Mapping[Any, Any]) -> Device:
    """Read one row; the first after the header is row 1."""
    if None in row:  # what csv calls cells beyond the last column
        raise UserError(f"{place}: has more cells than the header has columns")
    cells = {name: (cell or "").strip() for name, cell in row.items()}
    if missing := [name for name in _NEEDED if not cells[name]]:
        raise UserError(f"{place}: has no {' and no '.join(missing)}")
    availability = cells.pop("availability", "")
    given = {name: cell for name, cell in cells.items() if cell}
    profile = read_profile(given, f"{place}: {{}}")
    return Device(
        **dataclasses.asdict(profile),
        availability=_chance(place, availability) if availability else 1.0,
    )


def _chance(place: str, text: str) -> float:
    try:
        chance = float(text)
    except ValueError:
        chance = math.nan
    if not 0 < chance <= 1:
        raise UserError(f"{place}: availability must be a number in (0, 1], got {text!r}")
    return chance
