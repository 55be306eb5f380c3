"""Federation without a network: sampling, optimizers, replicas, the update log."""

from leansplit.federated.attendance import NEVER, Attendance
from leansplit.federated.averaging import mean_scalars, sample_weights, weighted_mean
from leansplit.federated.config import (
    CLIENT_ORDERS,
    FedAvgConfig,
    FrozenConfig,
    HOSFLConfig,
    MethodConfig,
    SplitFedConfig,
)
from leansplit.federated.optimizers import (
    LIFETIMES,
    OPTIMIZERS,
    OptimizerConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.federated.replica import Replica
from leansplit.federated.sampling import (
    ClientData,
    batch_indices,
    sample_cohort,
    service_order,
    take_batch,
)
from leansplit.federated.update_log import Update, UpdateLog

__all__ = [
    "CLIENT_ORDERS",
    "LIFETIMES",
    "NEVER",
    "OPTIMIZERS",
    "Attendance",
    "ClientData",
    "FedAvgConfig",
    "FrozenConfig",
    "HOSFLConfig",
    "MethodConfig",
    "OptimizerConfig",
    "Replica",
    "SplitFedConfig",
    "Update",
    "UpdateLog",
    "batch_indices",
    "build_optimizer",
    "load_optimizer_state_",
    "mean_scalars",
    "optimizer_state",
    "sample_cohort",
    "sample_weights",
    "service_order",
    "take_batch",
    "weighted_mean",
]
