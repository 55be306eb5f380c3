"""The costs of a run that are predicted before it and measured in it."""

from __future__ import annotations

from pydantic import ConfigDict, NonNegativeInt
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CostFigures:
    """What a run costs, predicted or measured; None where it is not known."""

    client_step_flops: NonNegativeInt | None = None
    client_peak_memory_bytes: NonNegativeInt | None = None
    uplink_bytes: NonNegativeInt | None = None  # of all clients, without envelopes
    downlink_bytes: NonNegativeInt | None = None
