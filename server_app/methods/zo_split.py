"""The rows of MU-SplitFed and ZO-SFL."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from leansplit import reference
from leansplit.costs import SplitShape, Traffic, zo_split_traffic
from leansplit.federated import MUSplitFedConfig, ZOSFLConfig, ZOSplitConfig
from leansplit.server_app.client_costs import zeroth_order_local_step
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import ZOSFL, MUSplitFed


def traffic(
    config: ZOSplitConfig, shape: SplitShape, attendance: Sequence[Set[int]], samples: int
) -> Traffic:
    """The closed formula with the configuration's sizes."""
    return zo_split_traffic(
        shape,
        attendance,
        samples,
        num_perturbations=config.zeroth_order.num_perturbations,
        num_activations=config.num_activations,
        local_steps=config.local_steps,
    )


MU_SPLITFED = MethodSpec(
    name="mu-splitfed",
    title="MU-SplitFed",
    description="zeroth-order on both sides, tau server steps for each client step",
    source="arXiv 2510.21155 (NeurIPS 2025)",
    client_order="zeroth",
    averages_weights=True,
    reports_estimates=True,
    config_type=MUSplitFedConfig,
    strategy=MUSplitFed,
    reference=reference.mu_splitfed,
    client_passes=lambda config: (config.num_activations, 0),
    traffic=traffic,
    round_trips=lambda config, attendance: (config.local_steps + 1) * len(attendance),
    client_step=lambda config, model, loss, x, y: zeroth_order_local_step(model, x, config),
)
ZO_SFL = replace(
    MU_SPLITFED,
    name="zo-sfl",
    title="ZO-SFL",
    description="zeroth-order on both sides, perturbed jointly",
    source="a baseline of arXiv 2603.14773",
    config_type=ZOSFLConfig,
    strategy=ZOSFL,
    reference=reference.zo_sfl,
)
