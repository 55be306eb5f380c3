"""Flower strategies, one file for each method."""

from leansplit.federated import (
    AlignmentConfig,
    CSEFSLConfig,
    DeComFLConfig,
    FedAvgConfig,
    FedZOConfig,
    FrozenConfig,
    FSLSAGEConfig,
    HeronSFLConfig,
    HOFLConfig,
    HOSFLConfig,
    HOSLConfig,
    MUSplitFedConfig,
    OptimizerConfig,
    SplitFedConfig,
    ZOSFLConfig,
)
from leansplit.models import AuxiliaryConfig
from leansplit.strategies.cse_fsl import CSEFSL
from leansplit.strategies.decomfl import DeComFL
from leansplit.strategies.deployment import Deployment
from leansplit.strategies.estimates import EstimateObserver
from leansplit.strategies.fedavg import FedAvg
from leansplit.strategies.fedzo import FedZO
from leansplit.strategies.frozen import FrozenClient
from leansplit.strategies.fsl_sage import FSLSAGE
from leansplit.strategies.heron_sfl import HeronSFL
from leansplit.strategies.ho_fl import HOFL
from leansplit.strategies.ho_sfl import HOSFL
from leansplit.strategies.hosl import HOSL
from leansplit.strategies.mu_splitfed import MUSplitFed
from leansplit.strategies.running import Observer, RoundReport
from leansplit.strategies.samples import ExpectedSamples
from leansplit.strategies.splitfed_v1 import SplitFedV1
from leansplit.strategies.splitfed_v2 import SplitFedV2
from leansplit.strategies.zo_sfl import ZOSFL
from leansplit.zeroth_order import ZerothOrderConfig

__all__ = [
    "CSEFSL",
    "FSLSAGE",
    "HOFL",
    "HOSFL",
    "HOSL",
    "ZOSFL",
    "AlignmentConfig",
    "AuxiliaryConfig",
    "CSEFSLConfig",
    "DeComFL",
    "DeComFLConfig",
    "Deployment",
    "EstimateObserver",
    "ExpectedSamples",
    "FSLSAGEConfig",
    "FedAvg",
    "FedAvgConfig",
    "FedZO",
    "FedZOConfig",
    "FrozenClient",
    "FrozenConfig",
    "HOFLConfig",
    "HOSFLConfig",
    "HOSLConfig",
    "HeronSFL",
    "HeronSFLConfig",
    "MUSplitFed",
    "MUSplitFedConfig",
    "Observer",
    "OptimizerConfig",
    "RoundReport",
    "SplitFedConfig",
    "SplitFedV1",
    "SplitFedV2",
    "ZOSFLConfig",
    "ZerothOrderConfig",
]
