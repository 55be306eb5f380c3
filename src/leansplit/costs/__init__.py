"""What a run costs: closed-form traffic, counted FLOPs, peak memory."""

from leansplit.costs.communication import (
    SplitShape,
    Traffic,
    fedavg_traffic,
    frozen_traffic,
    ho_sfl_traffic,
    splitfed_traffic,
)
from leansplit.costs.measure import count_flops, peak_tensor_bytes
from leansplit.costs.traffic_auxiliary import fsl_sage_traffic, local_loss_traffic

__all__ = [
    "SplitShape",
    "Traffic",
    "count_flops",
    "fedavg_traffic",
    "frozen_traffic",
    "fsl_sage_traffic",
    "ho_sfl_traffic",
    "local_loss_traffic",
    "peak_tensor_bytes",
    "splitfed_traffic",
]
