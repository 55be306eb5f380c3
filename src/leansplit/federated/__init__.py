"""Federation without a network: sampling, optimizers, replicas, the update log."""

from leansplit.federated.attendance import NEVER, Attendance
from leansplit.federated.averaging import (
    mean_scalars,
    moved_towards_mean,
    sample_weights,
    weighted_mean,
)
from leansplit.federated.config import (
    CLIENT_ORDERS,
    SERVER_MODES,
    DeComFLConfig,
    FedAvgConfig,
    FedZOConfig,
    FrozenConfig,
    HOFLConfig,
    HOSFLConfig,
    HOSLConfig,
    LocalStepsConfig,
    MethodConfig,
    MUSplitFedConfig,
    ReplicatedConfig,
    ServerMode,
    SplitFedConfig,
    ZOSFLConfig,
    ZOSplitConfig,
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
from leansplit.federated.trained_vector import TrainedVector
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
    "DeComFLConfig",
    "FSLSAGEConfig",
    "FedAvgConfig",
    "FedZOConfig",
    "FrozenConfig",
    "HOFLConfig",
    "HOSFLConfig",
    "HOSLConfig",
    "HeronSFLConfig",
    "LocalStepsConfig",
    "MUSplitFedConfig",
    "MethodConfig",
    "OptimizerConfig",
    "Replica",
    "ReplicatedConfig",
    "ServerMode",
    "SplitFedConfig",
    "TrainedVector",
    "Update",
    "UpdateLog",
    "ZOSFLConfig",
    "ZOSplitConfig",
    "batch_indices",
    "build_optimizer",
    "dependent_rounding",
    "inclusion_probabilities",
    "load_optimizer_state_",
    "mean_scalars",
    "moved_towards_mean",
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
