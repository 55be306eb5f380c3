"""Flower strategies, one file for each method."""

from leansplit.federated import (
    DeComFLConfig,
    FedAvgConfig,
    FedZOConfig,
    FrozenConfig,
    HOSFLConfig,
    HOSLConfig,
    OptimizerConfig,
    SplitFedConfig,
)
from leansplit.strategies.decomfl import DeComFL
from leansplit.strategies.fedavg import FedAvg
from leansplit.strategies.fedzo import FedZO
from leansplit.strategies.frozen import FrozenClient
from leansplit.strategies.ho_sfl import HOSFL
from leansplit.strategies.hosl import HOSL
from leansplit.strategies.running import Deployment, Observer, RoundReport
from leansplit.strategies.splitfed_v1 import SplitFedV1
from leansplit.strategies.splitfed_v2 import SplitFedV2
from leansplit.zeroth_order import ZerothOrderConfig

__all__ = [
    "HOSFL",
    "HOSL",
    "DeComFL",
    "DeComFLConfig",
    "Deployment",
    "FedAvg",
    "FedAvgConfig",
    "FedZO",
    "FedZOConfig",
    "FrozenClient",
    "FrozenConfig",
    "HOSFLConfig",
    "HOSLConfig",
    "Observer",
    "OptimizerConfig",
    "RoundReport",
    "SplitFedConfig",
    "SplitFedV1",
    "SplitFedV2",
    "ZerothOrderConfig",
]
