"""The typed records that cross the wire, one class for each message of each protocol."""

from leansplit.wire.records.auxiliary import LocalTrainReply, LocalTrainRequest
from leansplit.wire.records.base import KIND_KEY, MANY_KEY, Record, payload
from leansplit.wire.records.replicated import (
    BehindReply,
    CatchUpRequest,
    ForwardRequest,
    ProbeReply,
    ProbeRequest,
    SyncReply,
    SyncRequest,
)
from leansplit.wire.records.setup import SetupReply, SetupRequest
from leansplit.wire.records.splitfed import (
    BackwardRequest,
    SmashedDataReply,
    TrainForwardRequest,
    WeightsReply,
)

__all__ = [
    "KIND_KEY",
    "MANY_KEY",
    "BackwardRequest",
    "BehindReply",
    "CatchUpRequest",
    "ForwardRequest",
    "LocalTrainReply",
    "LocalTrainRequest",
    "ProbeReply",
    "ProbeRequest",
    "Record",
    "SetupReply",
    "SetupRequest",
    "SmashedDataReply",
    "SyncReply",
    "SyncRequest",
    "TrainForwardRequest",
    "WeightsReply",
    "payload",
]
