"""What a run costs: closed-form traffic, counted FLOPs, peak memory."""

from leansplit.costs.communication import (
    SplitShape,
    Traffic,
    fedavg_traffic,
    fedzo_traffic,
    frozen_traffic,
    splitfed_traffic,
)
from leansplit.costs.measure import (
    ClientStep,
    StepCosts,
    count_flops,
    held_weights,
    measure_step,
    peak_tensor_bytes,
)
from leansplit.costs.traffic_auxiliary import fsl_sage_traffic, local_loss_traffic
from leansplit.costs.traffic_ho_fl import ho_fl_traffic
from leansplit.costs.traffic_replicas import (
    CatchUpSizes,
    decomfl_traffic,
    ho_sfl_traffic,
    hosl_traffic,
)
from leansplit.costs.traffic_zo_split import zo_split_traffic

__all__ = [
    "CatchUpSizes",
    "ClientStep",
    "SplitShape",
    "StepCosts",
    "Traffic",
    "count_flops",
    "decomfl_traffic",
    "fedavg_traffic",
    "fedzo_traffic",
    "frozen_traffic",
    "fsl_sage_traffic",
    "held_weights",
    "ho_fl_traffic",
    "ho_sfl_traffic",
    "hosl_traffic",
    "local_loss_traffic",
    "measure_step",
    "peak_tensor_bytes",
    "splitfed_traffic",
    "zo_split_traffic",
]
