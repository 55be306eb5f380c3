"""What opens every run."""

from __future__ import annotations

from dataclasses import dataclass, field

from leansplit.wire.records.base import Record


@dataclass(frozen=True, kw_only=True)
class SetupRequest(Record):
    """Server to node, once: what the federation is about."""

    plan: str
    """The plan as JSON (see :class:`leansplit.wire.plan.ClientPlan`)."""


@dataclass(frozen=True, kw_only=True)
class SetupReply(Record):
    """Client to server, once."""

    num_samples: int
    label_counts: list[int]
    """Samples of each label; empty if labels are not class indices."""
    fixed_checksum: str = ""
    """Of the frozen parameters and buffers of the client's model."""
    smashed_shape: list[int] = field(default_factory=list)
    """Shape of one sample's smashed data, where the method asks for it; else empty."""
