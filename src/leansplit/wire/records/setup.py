"""What opens every run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leansplit.wire.records.base import Record, payload


@dataclass(frozen=True, kw_only=True)
class SetupRequest(Record):
    """Server to node, once: what the federation is about."""

    plan: str
    """The plan as JSON (see :class:`leansplit.wire.plan.ClientPlan`)."""


@dataclass(frozen=True, kw_only=True)
class SetupReply(Record):
    """Client to server, once: what it holds, and what its later answers will look like."""

    num_samples: int
    label_counts: list[int]
    """Samples of each label; empty if labels are not class indices."""
    fixed_checksum: str = ""
    """Of the frozen parameters and buffers of the client's model."""
    smashed_data: Tensor = payload("smashed_data", default_factory=lambda: torch.empty(0))
    """z of no samples, shape [0, ...]: what those of one look like; absent without a cut."""
    labels: Tensor = payload("labels", default_factory=lambda: torch.empty(0))
    """y of no samples, shape [0, ...]; absent without a cut."""
