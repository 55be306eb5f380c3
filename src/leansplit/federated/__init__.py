"""Federation without a network: sampling, optimizers, replicas, the update log."""

from leansplit.federated.attendance import NEVER, Attendance
from leansplit.federated.averaging import mean_scalars, sample_weights, weighted_mean
from leansplit.federated.config import (
    CLIENT_ORDERS,
    FedAvgConfig,
    FrozenConfig,
    HOFLConfig,
    HOSFLConfig,
    LocalStepsConfig,
    MethodConfig,
    ReplicatedConfig,
    SplitFedConfig,
    require_at_least_one,
)
from leansplit.federated.dependent_rounding import dependent_rounding
from leansplit.federated.dimension_sampling import inclusion_probabilities, sample_by_dimension
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
    "Attendance",
    "ClientData",
    "FedAvgConfig",
    "FrozenConfig",
    "HOFLConfig",
    "HOSFLConfig",
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
    "dependent_rounding",
    "inclusion_probabilities",
    "load_optimizer_state_",
    "mean_scalars",
    "optimizer_state",
    "require_at_least_one",
    "require_cohort",
    "sample_by_dimension",
    "sample_cohort",
    "sample_weights",
    "service_order",
    "take_batch",
    "weighted_mean",
]
