"""Zeroth-order gradient estimation: forward passes, seeds and scalars."""

from leansplit.zeroth_order.directions import unshared_directions
from leansplit.zeroth_order.estimators import (
    ESTIMATORS,
    Estimator,
    ZerothOrderConfig,
    estimate,
    paired_differences,
    perturbed_points,
    probe,
)
from leansplit.zeroth_order.objective import (
    LossObjective,
    Objective,
    SumObjective,
    SurrogateObjective,
    float64_sum,
    forward_only,
)

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "LossObjective",
    "Objective",
    "SumObjective",
    "SurrogateObjective",
    "ZerothOrderConfig",
    "estimate",
    "float64_sum",
    "forward_only",
    "paired_differences",
    "perturbed_points",
    "probe",
    "unshared_directions",
]
