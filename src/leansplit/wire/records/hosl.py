"""Messages of HOSL."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leansplit.wire.records.base import payload
from leansplit.wire.records.replicated import CatchUpRequest
from leansplit.wire.records.splitfed import SmashedDataReply


@dataclass(frozen=True, kw_only=True)
class HOSLRequest(CatchUpRequest):
    """Server to client: run your next batch forward, at your model and at the perturbed ones."""

    seeds: Tensor = payload("seeds")
    """Perturbation seeds [P], uint32."""


@dataclass(frozen=True, kw_only=True)
class HOSLReply(SmashedDataReply):
    """Client to server: clean smashed data, labels, and the smashed data of every probe."""

    perturbed_data: Tensor = payload("smashed_data")
    """z at theta + mu u_p, with ``central`` each followed by z at theta - mu u_p. In the order of
    the seeds, [P or 2 P, B, ...]."""
