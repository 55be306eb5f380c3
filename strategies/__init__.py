"""Flower strategies, one file for each method."""

from leansplit.federated import (
    FedAvgConfig,
    FrozenConfig,
    HOSFLConfig,
    OptimizerConfig,
    SplitFedConfig,
)
from leansplit.strategies.fedavg import FedAvg
from leansplit.strategies.frozen import FrozenClient
from leansplit.strategies.ho_sfl import HOSFL
from leansplit.strategies.running import Deployment, EstimateObserver, Observer, RoundReport
from leansplit.strategies.splitfed_v1 import SplitFedV1
from leansplit.strategies.splitfed_v2 import SplitFedV2
from leansplit.zeroth_order import ZerothOrderConfig

__all__ = [
    "HOSFL",
    "Deployment",
    "EstimateObserver",
    "FedAvg",
    "FedAvgConfig",
    "FrozenClient",
    "FrozenConfig",
    "HOSFLConfig",
    "Observer",
    "OptimizerConfig",
    "RoundReport",
    "SplitFedConfig",
    "SplitFedV1",
    "SplitFedV2",
    "ZerothOrderConfig",
]
