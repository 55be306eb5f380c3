"""Messages of zeroth-order federated learning without a cut: DeComFL and FedZO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leansplit.parameters import ParameterDict
from leansplit.wire.records.base import Record, payload
from leansplit.wire.records.replicated import CatchUpRequest


@dataclass(frozen=True, kw_only=True)
class DeComFLRequest(CatchUpRequest):
    """DeComFL, server to client: catch up, then take local steps along these directions."""

    seeds: Tensor = payload("seeds")
    """Perturbation seeds [h, P], uint32."""


@dataclass(frozen=True, kw_only=True)
class DeComFLReply(Record):
    """DeComFL, client to server: what the local steps measured; no weights."""

    scalars: Tensor = payload("scalars")
    """v [h, P], float32, not divided by mu."""
    num_samples: int
    """Samples of all local steps."""
    checksum: str
    """Of the replica that the local steps started from."""


@dataclass(frozen=True, kw_only=True)
class FedZORequest(Record):
    """FedZO, server to client: train from these weights."""

    round: int
    weights: ParameterDict = payload("weights", many=True)
    """The whole model's trainable parameters."""


@dataclass(frozen=True, kw_only=True)
class FedZOReply(Record):
    """FedZO, client to server: the model after the local steps."""

    weights: ParameterDict = payload("weights", many=True)
    num_samples: int
    """Samples of all local steps."""
