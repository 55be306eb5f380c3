"""The row of HO-FL."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from leansplit import reference
from leansplit.costs import ClientStep, SplitShape, ho_fl_traffic
from leansplit.federated import HOFLConfig
from leansplit.first_order import Loss
from leansplit.hybrid_order import (
    ALL,
    NONE,
    boundary_groups,
    fit_boundaries,
    measurable_step,
    segments_at,
)
from leansplit.models import SplitModel
from leansplit.server_app.client_costs import measure
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import HOFL


def zeroth_elements(config: HOFLConfig, model: SplitModel, num_clients: int) -> tuple[int, ...]:
    """Return d_i of clients 0, 1, ..."""
    groups = boundary_groups(config, model, num_clients)
    sizes = {m: group.num_zeroth_elements for group in groups for m in group.clients}
    return tuple(sizes[m] for m in range(num_clients))


def cohort(
    config: HOFLConfig, shape: SplitShape, population: Sequence[int], round: int
) -> list[int]:
    """Exactly K clients, more often those with small d_i."""
    return config.sample_by_dimension(round, {m: shape.zeroth_elements[m] for m in population})


def client_passes(config: HOFLConfig) -> tuple[float, float]:
    """Averaged over the boundaries; a pass through one segment counts as a pass.

    With both segments: the forward pass, the probes of the lower segment, the backward pass of the
    upper one. That is the most such passes can cost, since each runs through a part of the model.
    """
    is_forward = config.zeroth_order.estimator == "forward"
    probing = config.zeroth_order.num_forwards + (0 if is_forward else 1)
    boundaries = list(config.boundaries_of(range(config.num_boundaries)).values())
    forwards = sum(1 if b == NONE else probing for b in boundaries)
    backwards = sum(b != ALL for b in boundaries)
    return forwards / len(boundaries), backwards / len(boundaries)


def boundary_step(
    config: HOFLConfig,
    model: SplitModel,
    loss: Loss,
    inputs: Tensor,
    labels: Tensor,
    boundary: str,
) -> ClientStep:
    """The step of a client at ``boundary``, on a copy of the model."""
    segments = segments_at(copy.deepcopy(model), boundary)
    return measurable_step(segments, loss, config, inputs, labels)


def client_step(
    config: HOFLConfig, model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor
) -> ClientStep:
    """The step of the most demanding client: the boundary that holds the most memory."""

    def step_at(boundary: str) -> ClientStep:
        return boundary_step(config, model, loss, inputs, labels, boundary)

    names = sorted(set(config.boundaries_of(range(config.num_boundaries)).values()))
    if len(names) == 1:
        return step_at(names[0])
    return step_at(max(names, key=lambda name: measure(step_at(name)).peak_memory_bytes))


HO_FL = MethodSpec(
    name="ho-fl",
    title="HO-FL",
    description="no split server: zeroth-order lower layers, first-order upper layers, on device",
    source="HO-FL, from the laboratory of HO-SFL",
    client_order="hybrid",
    averages_weights=True,
    reports_estimates=True,
    config_type=HOFLConfig,
    strategy=HOFL,
    reference=reference.ho_fl,
    client_passes=client_passes,
    traffic=lambda config, shape, attendance, samples: ho_fl_traffic(
        shape, attendance, config.local_steps, config.zeroth_order.num_perturbations
    ),
    client_step=client_step,
    boundary_step=boundary_step,
    settle=fit_boundaries,
    zeroth_elements=zeroth_elements,
    boundaries=boundary_groups,
    cohort=cohort,
)
