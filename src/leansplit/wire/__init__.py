"""What crosses the wire: typed records, their encoding, and the ledger that prices them."""

from leansplit.wire.codec import DecodeError, decode, decode_as, encode, price
from leansplit.wire.kinds import DIRECTIONS, KINDS, Direction, Kind
from leansplit.wire.ledger import Ledger, LedgerEntry
from leansplit.wire.plan import ClientPlan, ReplicaStorage
from leansplit.wire.records import (
    BackwardRequest,
    BehindReply,
    CatchUpRequest,
    DifferencesRequest,
    ForwardRequest,
    ProbedSmashedDataReply,
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
    "DifferencesRequest",
    "Direction",
    "ForwardRequest",
    "Kind",
    "Ledger",
    "LedgerEntry",
    "ProbeReply",
    "ProbeRequest",
    "ProbedSmashedDataReply",
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
