"""Zeroth-order gradient estimation: forward passes, seeds and scalars."""

from leansplit.zeroth_order.directions import unshared_directions
from leansplit.zeroth_order.estimators import (
    ESTIMATORS,
    Estimator,
    ZerothOrderConfig,
    estimate,
    perturbed,
    probe,
)
from leansplit.zeroth_order.local_objective import LocalLossObjective
from leansplit.zeroth_order.objective import (
    LossObjective,
    Objective,
    SumObjective,
    SurrogateObjective,
    float64_sum,
    forward_only,
)
from leansplit.zeroth_order.split_probes import (
    ProbedSmashedData,
    ServerObjective,
    probe_smashed_data,
)

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "LocalLossObjective",
    "LossObjective",
    "Objective",
    "ProbedSmashedData",
    "ServerObjective",
    "SumObjective",
    "SurrogateObjective",
    "ZerothOrderConfig",
    "estimate",
    "float64_sum",
    "forward_only",
    "perturbed",
    "probe",
    "probe_smashed_data",
    "unshared_directions",
]
