"""What crosses the wire: typed records, their encoding, and the ledger that prices them."""

from leansplit.wire.codec import DecodeError, decode, decode_as, encode, price
from leansplit.wire.kinds import DIRECTIONS, KINDS, Direction, Kind
from leansplit.wire.ledger import Ledger, LedgerEntry
from leansplit.wire.plan import ClientPlan, ReplicaStorage
from leansplit.wire.records import (
    BackwardRequest,
    BehindReply,
    CatchUpRequest,
    ForwardRequest,
    LocalTrainReply,
    LocalTrainRequest,
    ProbeReply,
    ProbeRequest,
    Record,
    SetupReply,
    SetupRequest,
    SmashedDataReply,
    SyncReply,
    SyncRequest,
    TrainForwardRequest,
    WeightsReply,
)

__all__ = [
    "DIRECTIONS",
    "KINDS",
    "BackwardRequest",
    "BehindReply",
    "CatchUpRequest",
    "ClientPlan",
    "DecodeError",
    "Direction",
    "ForwardRequest",
    "Kind",
    "Ledger",
    "LedgerEntry",
    "LocalTrainReply",
    "LocalTrainRequest",
    "ProbeReply",
    "ProbeRequest",
    "Record",
    "ReplicaStorage",
    "SetupReply",
    "SetupRequest",
    "SmashedDataReply",
    "SyncReply",
    "SyncRequest",
    "TrainForwardRequest",
    "WeightsReply",
    "decode",
    "decode_as",
    "encode",
    "price",
]
