"""The row of FedAvg."""

from __future__ import annotations

from typing import Any

from leansplit import reference
from leansplit.costs import fedavg_traffic
from leansplit.federated import FedAvgConfig
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.server_app.client_costs import full_model_step
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import FedAvg


def _strategy(model: SplitModel, loss: Loss, config: FedAvgConfig, **options: Any) -> FedAvg:
    return FedAvg(model, config, **options)  # FedAvg's server never evaluates the loss


FEDAVG = MethodSpec(
    name="fedavg",
    title="FedAvg",
    description="the whole model trained at the client and averaged by Flower",
    source="McMahan et al., AISTATS 2017",
    is_split=False,
    client_order="first",
    averages_weights=True,
    one_client_per_node=True,
    config_type=FedAvgConfig,
    strategy=_strategy,
    reference=reference.fedavg,
    client_passes=lambda config: (1, 1),
    traffic=lambda config, shape, attendance, samples: fedavg_traffic(shape, attendance),
    client_step=lambda config, model, loss, x, y: full_model_step(model, loss, x, y, config),
)
