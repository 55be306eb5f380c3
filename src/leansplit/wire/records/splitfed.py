"""Smashed data, and the messages of split federated learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from leansplit.parameters import ParameterDict
from leansplit.wire.records.base import Record, payload


@dataclass(frozen=True, kw_only=True)
class SmashedDataReply(Record):
    """Client to server: the cut layer's output for one batch."""

    smashed_data: Tensor = payload("smashed_data")
    """z, shape [B, ...]."""
    labels: Tensor = payload("labels")
    """y, shape [B, ...]."""
    checksum: str = ""
    """Of the replica that produced z; empty if the protocol keeps none."""


@dataclass(frozen=True, kw_only=True)
class TrainForwardRequest(Record):
    """Split federated learning, server to client: start a round from these weights."""

    round: int
    local_step: int
    weights: ParameterDict = payload("weights", many=True)


@dataclass(frozen=True, kw_only=True)
class BackwardRequest(Record):
    """Split federated learning, server to client: back-propagate, then go on."""

    continues_round: ClassVar[bool] = True

    round: int
    local_step: int
    is_last: bool
    """True: answer with the weights; False: answer with the next step's smashed data."""
    smashed_gradient: Tensor = payload("smashed_gradient")


@dataclass(frozen=True, kw_only=True)
class WeightsReply(Record):
    """Client to server: the client model after its local steps."""

    weights: ParameterDict = payload("weights", many=True)
