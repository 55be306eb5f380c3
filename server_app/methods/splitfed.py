"""The row of SFLV1 and SFLV2."""

from __future__ import annotations

from dataclasses import replace

from leansplit import reference
from leansplit.costs import splitfed_traffic
from leansplit.federated import SplitFedConfig
from leansplit.server_app.client_costs import first_order_step
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import SplitFedV1, SplitFedV2

SFLV1 = MethodSpec(
    name="sflv1",
    title="SFLV1",
    description="first-order split federated learning, one server replica for each client",
    source="Thapa et al., AAAI 2022",
    client_order="first",
    averages_weights=True,
    config_type=SplitFedConfig,
    strategy=SplitFedV1,
    reference=reference.splitfed_v1,
    client_passes=lambda config: (1, 1),
    traffic=lambda config, shape, attendance, samples: splitfed_traffic(shape, attendance, samples),
    client_step=lambda config, model, loss, x, y: first_order_step(
        model, x, config.client_optimizer
    ),
)
SFLV2 = replace(
    SFLV1,
    name="sflv2",
    title="SFLV2",
    description="first-order split federated learning, one server model in turn",
    strategy=SplitFedV2,
    reference=reference.splitfed_v2,
)
