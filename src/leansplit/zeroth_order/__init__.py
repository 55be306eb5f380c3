"""Zeroth-order gradient estimation: forward passes, seeds and scalars."""

from leansplit.zeroth_order.directions import unshared_directions
from leansplit.zeroth_order.estimators import (
    ESTIMATORS,
    Estimator,
    ZerothOrderConfig,
    estimate,
    probe,
)
from leansplit.zeroth_order.local_objective import LocalLossObjective
from leansplit.zeroth_order.objective import (
    Objective,
    SumObjective,
    SurrogateObjective,
    float64_sum,
    forward_only,
)

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "LocalLossObjective",
    "Objective",
    "SumObjective",
    "SurrogateObjective",
    "ZerothOrderConfig",
    "estimate",
    "float64_sum",
    "forward_only",
    "probe",
    "unshared_directions",
]
