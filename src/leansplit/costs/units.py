"""Quantities as people write them: ``2GiB``, ``10Mbit``, ``40ms``, ``50G``."""

from __future__ import annotations

import math
import re
from typing import Final

from leansplit.errors import UserError

_DECIMAL: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
MIB: Final = 2.0**20
_BINARY: Final = {"Ki": 2.0**10, "Mi": MIB, "Gi": 2.0**30, "Ti": 2.0**40}
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_QUANTITY: Final = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/]*)\s*")


def parse_bytes(what: str, text: str) -> int:
    """Read a size such as ``2GiB`` (2 * 2**30), ``500MB`` (5e8) or ``4096B``, in bytes.

    Raises:
        UserError: naming ``what`` and the units there are.
    """
    units = {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()}
    size = round(_parse(what, text, units, "2GiB, 500MB or 4096B"))
    if not size:
        raise UserError(f"{what} must be at least 1B, got {text!r}")
    return size


def parse_bit_rate(what: str, text: str) -> float:
    """Read a rate such as ``10Mbit``, ``10Mbit/s`` or ``1.5MB/s``, in bits per second.

    Raises:
        UserError: as :func:`parse_bytes`.
    """
    bits = {f"{prefix}bit": factor for prefix, factor in _DECIMAL.items()}
    octets = {f"{p}B/s": 8 * factor for p, factor in (_DECIMAL | _BINARY).items()}
    units = bits | {f"{unit}/s": factor for unit, factor in bits.items()} | octets
    return _parse(what, text, units, "10Mbit, 1Gbit/s or 1.5MB/s")


def parse_seconds(what: str, text: str) -> float:
    """Read a time such as ``40ms``, in seconds; ``0`` needs no unit.

    Raises:
        UserError: as :func:`parse_bytes`.
    """
    if text.strip() in ("0", "0.0"):
        return 0.0
    return _parse(what, text, _SECONDS, "40ms or 0.04s", allow_zero=True)


def parse_compute_rate(what: str, text: str) -> float:
    """Read a rate such as ``50G``, ``50GFLOPS`` or ``5e10``, in FLOPs per second.

    Raises:
        UserError: as :func:`parse_bytes`.
    """
    ends = ("", "FLOPS", "FLOP/s", "flops")
    units = {f"{prefix}{end}": factor for prefix, factor in _DECIMAL.items() for end in ends}
    return _parse(what, text, units, "50G, 50GFLOPS or 5e10")


def in_words(seconds: float) -> str:
    """Return a time in the unit that suits it, as in ``4.8 h``."""
    for factor, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * factor:
            return f"{seconds / factor:,.1f} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def with_prefix(value: float) -> str:
    """Return a number with a decimal prefix, as in ``39.56 G``."""
    for prefix, factor in reversed(_DECIMAL.items()):
        if prefix and prefix != "P" and abs(value) >= factor:
            return f"{value / factor:,.2f} {prefix}"
    return f"{value:,.0f} "


def in_bytes(num_bytes: float) -> str:
    """Return bytes of traffic, with decimal prefixes."""
    return f"{with_prefix(num_bytes)}B"


def in_memory(num_bytes: float) -> str:
    """Return bytes of memory in MiB, of little memory in KiB."""
    if not num_bytes:
        return "0 B"
    if num_bytes < MIB / 10:
        return f"{num_bytes / 1024:,.2f} KiB"
    return f"{num_bytes / MIB:,.2f} MiB"


def _parse(
    what: str, text: str, units: dict[str, float], examples: str, *, allow_zero: bool = False
) -> float:
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise UserError(f"{what} cannot be {text!r}: write a number and a unit, such as {examples}")
    number, unit = found.groups()
    if unit not in units:
        near = next((u for u in units if u.lower() == unit.lower()), "")
        hint = f"did you mean {number}{near}? " if near else ""
        problem = f"has no unit {unit!r}" if unit else "needs a unit"
        raise UserError(f"{what} {problem}: {hint}write it as {examples}, got {text!r}")
    value = float(number) * units[unit]
    if not (math.isfinite(value) and (value > 0 or (allow_zero and value == 0))):
        raise UserError(f"{what} must be finite and above 0, got {text!r}")
    return value
