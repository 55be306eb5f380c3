"""Messages of HOSL; clients answer with a :class:`ProbedSmashedDataReply`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leansplit.wire.records.base import payload
from leansplit.wire.records.replicated import CatchUpRequest


@dataclass(frozen=True, kw_only=True)
class HOSLRequest(CatchUpRequest):
    """Server to client: run your next batch forward, at your model and at the perturbed ones."""

    seeds: Tensor = payload("seeds")
    """Perturbation seeds [P], uint32."""
