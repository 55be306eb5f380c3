"""Messages of HO-FL: the whole model down; scalars and the first-order segment up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leansplit.parameters import ParameterDict
from leansplit.wire.records.base import Record, payload


@dataclass(frozen=True, kw_only=True)
class HybridTrainRequest(Record):
    """Server to client: train these weights locally, zeroth-order below the boundary."""

    round: int
    boundary: str
    """The client's order boundary; see :func:`leansplit.hybrid_order.segments_at`."""
    weights: ParameterDict = payload("weights", many=True)
    """The whole model."""
    seeds: Tensor = payload("seeds", default_factory=lambda: torch.empty(0, 0, dtype=torch.uint32))
    """Perturbation seeds [E, P], uint32; absent without a zeroth-order segment."""
    moments_round: int = -1
    """The participation whose moments the server holds too; -1: none."""


@dataclass(frozen=True, kw_only=True)
class HybridTrainReply(Record):
    """Client to server: what the local steps did."""

    weights: ParameterDict = payload("weights", many=True, default_factory=dict)
    """The first-order segment after the local steps."""
    scalars: Tensor = payload("scalars", default_factory=lambda: torch.empty(0, 0))
    """Directional differences v [E, P], float32, not divided by mu; absent as the seeds are."""
    num_samples: int
    loss: float
    """Sample-weighted mean over the local steps."""
    checksum: str = ""
    """Of the zeroth-order segment and its moments after the local steps; empty without one."""
    moments_round: int = -1
    """The participation whose moments the client started from; -1: from zero."""
