"""The row of SFLV1 and SFLV2."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from torch import Tensor, nn

from leansplit import reference
from leansplit.costs import ClientStep, splitfed_traffic
from leansplit.federated import SplitFedConfig
from leansplit.first_order import Loss, replayed_forwards
from leansplit.models import SplitModel, chain
from leansplit.server_app.client_costs import first_order_step, recomputing_step
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import SplitFedV1, SplitFedV2


def client_passes(config: SplitFedConfig) -> tuple[float, float]:
    """A recomputing client runs forward to make z, and once more with the graph."""
    return (2, 1) if config.client_backward == "recompute" else (1, 1)


def client_replays(config: SplitFedConfig, client_model: nn.Module) -> float:
    """What bisection repeats depends on the number of links."""
    if config.client_backward == "full":
        return 0.0
    return replayed_forwards(len(chain(client_model)))


def client_step(
    config: SplitFedConfig, model: SplitModel, loss: Loss, x: Tensor, y: Tensor
) -> ClientStep:
    """Return the step that the settings ask for."""
    if config.client_backward == "recompute":
        return recomputing_step(model, x, config)
    return first_order_step(model, x, config)


def v2_round_trips(config: SplitFedConfig, attendance: Sequence[Set[int]]) -> int:
    """Clients that are served one after the other each have exchanges of their own."""
    in_turn = config.client_order == "sequential"
    turns = sum(len(cohort) if in_turn else 1 for cohort in attendance)
    return (config.local_steps + 1) * turns


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
    client_passes=client_passes,
    client_replays=client_replays,
    traffic=lambda config, shape, attendance, samples: splitfed_traffic(shape, attendance, samples),
    round_trips=lambda config, attendance: (config.local_steps + 1) * len(attendance),
    client_step=client_step,
)
SFLV2 = replace(
    SFLV1,
    name="sflv2",
    title="SFLV2",
    description="first-order split federated learning, one server model in turn",
    strategy=SplitFedV2,
    round_trips=v2_round_trips,
    reference=reference.splitfed_v2,
)
