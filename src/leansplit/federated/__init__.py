"""Federation without a network: sampling, optimizers, replicas, the update log."""

from leansplit.federated.attendance import NEVER, Attendance
from leansplit.federated.averaging import mean_scalars, sample_weights, weighted_mean
from leansplit.federated.config import (
    CLIENT_ORDERS,
    FedAvgConfig,
    FrozenConfig,
    HOSFLConfig,
    LocalStepsConfig,
    MethodConfig,
    ReplicatedConfig,
    SplitFedConfig,
    require_at_least_one,
)
from leansplit.federated.config_auxiliary import (
    SERVER_MODES,
    AlignmentConfig,
    AuxiliaryMethodConfig,
    CSEFSLConfig,
    FSLSAGEConfig,
    HeronSFLConfig,
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
    require_cohort,
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
    "SERVER_MODES",
    "AlignmentConfig",
    "Attendance",
    "AuxiliaryMethodConfig",
    "CSEFSLConfig",
    "ClientData",
    "FSLSAGEConfig",
    "FedAvgConfig",
    "FrozenConfig",
    "HOSFLConfig",
    "HeronSFLConfig",
    "LocalStepsConfig",
    "MethodConfig",
    "OptimizerConfig",
    "Replica",
    "ReplicatedConfig",
    "SplitFedConfig",
    "Update",
    "UpdateLog",
    "batch_indices",
    "build_optimizer",
    "load_optimizer_state_",
    "mean_scalars",
    "optimizer_state",
    "require_at_least_one",
    "require_cohort",
    "sample_cohort",
    "sample_weights",
    "service_order",
    "take_batch",
    "weighted_mean",
]
