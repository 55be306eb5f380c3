"""Flower strategies, one file for each method."""

from leansplit.federated import (
    AlignmentConfig,
    CSEFSLConfig,
    FedAvgConfig,
    FrozenConfig,
    FSLSAGEConfig,
    HeronSFLConfig,
    HOSFLConfig,
    OptimizerConfig,
    SplitFedConfig,
)
from leansplit.models import AuxiliaryConfig
from leansplit.strategies.cse_fsl import CSEFSL
from leansplit.strategies.fedavg import FedAvg
from leansplit.strategies.frozen import FrozenClient
from leansplit.strategies.fsl_sage import FSLSAGE
from leansplit.strategies.heron_sfl import HeronSFL
from leansplit.strategies.ho_sfl import HOSFL
from leansplit.strategies.running import Deployment, Observer, RoundReport
from leansplit.strategies.splitfed_v1 import SplitFedV1
from leansplit.strategies.splitfed_v2 import SplitFedV2
from leansplit.zeroth_order import ZerothOrderConfig

__all__ = [
    "CSEFSL",
    "FSLSAGE",
    "HOSFL",
    "AlignmentConfig",
    "AuxiliaryConfig",
    "CSEFSLConfig",
    "Deployment",
    "FSLSAGEConfig",
    "FedAvg",
    "FedAvgConfig",
    "FrozenClient",
    "FrozenConfig",
    "HOSFLConfig",
    "HeronSFL",
    "HeronSFLConfig",
    "Observer",
    "OptimizerConfig",
    "RoundReport",
    "SplitFedConfig",
    "SplitFedV1",
    "SplitFedV2",
    "ZerothOrderConfig",
]
