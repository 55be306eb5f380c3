"""Federation without a network: sampling, optimizers, replicas, the update log."""

from leansplit.federated.attack import ATTACKS, AttackConfig
from leansplit.federated.attendance import CATCH_UPS, NEVER, Attendance, CatchUp, place_type
from leansplit.federated.averaging import (
    mean_scalars,
    moved_towards_mean,
    sample_weights,
    weighted_mean,
)
from leansplit.federated.config import (
    CLIENT_ORDERS,
    AggregatedConfig,
    DeComFLConfig,
    FedAvgConfig,
    FedZOConfig,
    FrozenConfig,
    HOSFLConfig,
    HOSLConfig,
    LocalStepsConfig,
    MethodConfig,
    NoisedConfig,
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
    LocalLossConfig,
)
from leansplit.federated.config_ho_fl import HOFLConfig
from leansplit.federated.config_zo_split import (
    REPLICA_MODES,
    MUSplitFedConfig,
    ReplicaMode,
    ZOSFLConfig,
    ZOSplitConfig,
)
from leansplit.federated.dependent_rounding import dependent_rounding
from leansplit.federated.dimension_sampling import inclusion_probabilities, sample_by_dimension
from leansplit.federated.faults import Fault, FaultsConfig
from leansplit.federated.optimizers import (
    LIFETIMES,
    OPTIMIZERS,
    Lifetime,
    OptimizerConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.federated.presence import Presence
from leansplit.federated.privacy import PrivacyConfig, clipped, clipped_smashed_data
from leansplit.federated.replica import Replica
from leansplit.federated.robust import RULES, RobustConfig, aggregate, aggregate_scalars
from leansplit.federated.sampling import (
    ClientData,
    batch_at,
    batch_indices,
    num_samples_of,
    require_cohort,
    sample_cohort,
    sample_order,
    samples_at,
    service_order,
    take_batch,
)
from leansplit.federated.trained_vector import TrainedVector
from leansplit.federated.update_log import Update, UpdateLog

__all__ = [
    "ATTACKS",
    "CATCH_UPS",
    "CLIENT_ORDERS",
    "LIFETIMES",
    "NEVER",
    "OPTIMIZERS",
    "REPLICA_MODES",
    "RULES",
    "SERVER_MODES",
    "AggregatedConfig",
    "AlignmentConfig",
    "AttackConfig",
    "Attendance",
    "AuxiliaryMethodConfig",
    "CSEFSLConfig",
    "CatchUp",
    "ClientData",
    "DeComFLConfig",
    "FSLSAGEConfig",
    "Fault",
    "FaultsConfig",
    "FedAvgConfig",
    "FedZOConfig",
    "FrozenConfig",
    "HOFLConfig",
    "HOSFLConfig",
    "HOSLConfig",
    "HeronSFLConfig",
    "Lifetime",
    "LocalLossConfig",
    "LocalStepsConfig",
    "MUSplitFedConfig",
    "MethodConfig",
    "NoisedConfig",
    "OptimizerConfig",
    "Presence",
    "PrivacyConfig",
    "Replica",
    "ReplicaMode",
    "ReplicatedConfig",
    "RobustConfig",
    "SplitFedConfig",
    "TrainedVector",
    "Update",
    "UpdateLog",
    "ZOSFLConfig",
    "ZOSplitConfig",
    "aggregate",
    "aggregate_scalars",
    "batch_at",
    "batch_indices",
    "build_optimizer",
    "clipped",
    "clipped_smashed_data",
    "dependent_rounding",
    "inclusion_probabilities",
    "load_optimizer_state_",
    "mean_scalars",
    "moved_towards_mean",
    "num_samples_of",
    "optimizer_state",
    "place_type",
    "require_at_least_one",
    "require_cohort",
    "sample_by_dimension",
    "sample_cohort",
    "sample_order",
    "sample_weights",
    "samples_at",
    "service_order",
    "take_batch",
    "weighted_mean",
]
