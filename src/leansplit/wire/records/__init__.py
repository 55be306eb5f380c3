"""The typed records that cross the wire, one class for each message of each protocol."""

from leansplit.wire.records.auxiliary import LocalTrainReply, LocalTrainRequest
from leansplit.wire.records.base import (
    ALIKE_KEY,
    KIND_KEY,
    MANY_KEY,
    Payloads,
    Record,
    kinds_of,
    moved,
    payload,
    with_payloads,
)
from leansplit.wire.records.deposits import (
    DepositReply,
    DepositRequest,
    RestoreReply,
    RestoreRequest,
)
from leansplit.wire.records.hybrid_order import HybridTrainReply, HybridTrainRequest
from leansplit.wire.records.replicated import (
    BehindReply,
    CatchUpRequest,
    ForwardRequest,
    ProbedForwardRequest,
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
from leansplit.wire.records.zeroth_order_federated import (
    DeComFLReply,
    DeComFLRequest,
    FedZOReply,
    FedZORequest,
)
from leansplit.wire.records.zo_split import DifferencesRequest, ProbedSmashedDataReply

__all__ = [
    "ALIKE_KEY",
    "KIND_KEY",
    "MANY_KEY",
    "BackwardRequest",
    "BehindReply",
    "CatchUpRequest",
    "DeComFLReply",
    "DeComFLRequest",
    "DepositReply",
    "DepositRequest",
    "DifferencesRequest",
    "FedZOReply",
    "FedZORequest",
    "ForwardRequest",
    "HybridTrainReply",
    "HybridTrainRequest",
    "LocalTrainReply",
    "LocalTrainRequest",
    "Payloads",
    "ProbeReply",
    "ProbeRequest",
    "ProbedForwardRequest",
    "ProbedSmashedDataReply",
    "Record",
    "RestoreReply",
    "RestoreRequest",
    "SetupReply",
    "SetupRequest",
    "SmashedDataReply",
    "SyncReply",
    "SyncRequest",
    "TrainForwardRequest",
    "WeightsReply",
    "kinds_of",
    "moved",
    "payload",
    "with_payloads",
]
