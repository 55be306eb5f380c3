"""Zeroth-order gradient estimation: forward passes, seeds and scalars."""

from leansplit.zeroth_order.differentiable import (
    DifferentiableObjective,
    Half,
    cut_objective,
    evaluation_mode,
    local_loss_objective,
    loss_objective,
    surrogate_objective,
)
from leansplit.zeroth_order.directions import (
    fresh_directions,
    parts_of_all,
    unshared_directions,
)
from leansplit.zeroth_order.estimators import (
    ESTIMATORS,
    Estimator,
    ZerothOrderConfig,
    coefficients,
    estimate,
    perturbed,
    probe,
    probe_each,
)
from leansplit.zeroth_order.joint_passes import (
    JOINT_PASSES_MODES,
    BatchObjective,
    JointPassChoice,
    JointPasses,
    JointPassesMode,
    evaluate_jointly,
)
from leansplit.zeroth_order.local_objective import LocalLossObjective
from leansplit.zeroth_order.objective import (
    LossObjective,
    Objective,
    SumObjective,
    SurrogateObjective,
    float64_inner_product,
    float64_sum,
    forward_only,
)
from leansplit.zeroth_order.passes_by_length import run_by_length
from leansplit.zeroth_order.quality import (
    EstimateQuality,
    EstimateSum,
    expected_cosine,
    expected_norm_ratio,
    expected_relative_variance,
    expected_squared_cosine,
    quality_of,
)
from leansplit.zeroth_order.report import Batches, EstimateReport, ProbedDirections
from leansplit.zeroth_order.scaled_sums import begin_sum_
from leansplit.zeroth_order.split_probes import (
    ProbedSmashedData,
    ServerObjective,
    probe_smashed_data,
    probe_smashed_data_each,
    surrogate_differences,
)

__all__ = [
    "ESTIMATORS",
    "JOINT_PASSES_MODES",
    "BatchObjective",
    "Batches",
    "DifferentiableObjective",
    "EstimateQuality",
    "EstimateReport",
    "EstimateSum",
    "Estimator",
    "Half",
    "JointPassChoice",
    "JointPasses",
    "JointPassesMode",
    "LocalLossObjective",
    "LossObjective",
    "Objective",
    "ProbedDirections",
    "ProbedSmashedData",
    "ServerObjective",
    "SumObjective",
    "SurrogateObjective",
    "ZerothOrderConfig",
    "begin_sum_",
    "coefficients",
    "cut_objective",
    "estimate",
    "evaluate_jointly",
    "evaluation_mode",
    "expected_cosine",
    "expected_norm_ratio",
    "expected_relative_variance",
    "expected_squared_cosine",
    "float64_inner_product",
    "float64_sum",
    "forward_only",
    "fresh_directions",
    "local_loss_objective",
    "loss_objective",
    "parts_of_all",
    "perturbed",
    "probe",
    "probe_each",
    "probe_smashed_data",
    "probe_smashed_data_each",
    "quality_of",
    "run_by_length",
    "surrogate_differences",
    "surrogate_objective",
    "unshared_directions",
]
