"""What a run was predicted to cost, and what it was measured to cost where it was computed."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from leansplit.clients.task_workload import task_client_data
from leansplit.costs import StepCosts
from leansplit.costs.allocator import Allocator, allocator_peak
from leansplit.errors import UserError
from leansplit.federated import ClientData, MethodConfig
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.server_app.client_costs import measure
from leansplit.server_app.closed_form import ClosedForm
from leansplit.server_app.config import RunConfig
from leansplit.server_app.cost_figures import CostFigures
from leansplit.server_app.methods import METHODS
from leansplit.server_app.plan_time import direction_bytes
from leansplit.server_app.planning import Planner, Problem
from leansplit.server_app.recording import Outcome
from leansplit.strategies.client_watch import WatchedRound
from leansplit.tasks.task import Task
from leansplit.zeroth_order import unshared_directions


def add_cost_check(
    outcome: Outcome, task: Task, model: SplitModel, watched: WatchedRound | None
) -> None:
    """Add to a finished run what it should have cost, and what its ledger and a client counted.

    Traffic is predicted for the rounds that were run and the lengths that sequences had, the step
    for the batches that the client ran on.

    Args:
        outcome: of the run, its ledger included.
        task: what clients trained on.
        model: on the CPU; its values do not matter.
        watched: what a client counted, if one did.
    """
    config, settings = outcome.config, outcome.settings
    if settings is None or outcome.status == "failed" or not outcome.rounds_completed:
        return
    form = ClosedForm(
        config, settings, task, model, outcome.num_samples, _client_data(config, task)
    )
    for t in range(1, outcome.rounds_completed + 1):
        form.attend(t)
    traffic, ledger = form.traffic(), outcome.ledger
    outcome.predicted = CostFigures(
        uplink_bytes=direction_bytes(traffic, "uplink"),
        downlink_bytes=direction_bytes(traffic, "downlink"),
    )
    outcome.measured = CostFigures(
        uplink_bytes=ledger.total_bytes("uplink") - ledger.total_bytes("uplink", "envelope"),
        downlink_bytes=ledger.total_bytes("downlink") - ledger.total_bytes("downlink", "envelope"),
    )
    if watched is not None:
        num_steps = len(watched.batches)
        outcome.predicted = _with_step(outcome.predicted, *_predicted_step(outcome, task, watched))
        outcome.measured = _with_step(
            outcome.measured, round(watched.flops / num_steps), watched.peak_memory_bytes
        )
        outcome.measured_by = f"client {watched.client_id} in round {watched.round}"
        outcome.repeated_step_flops = watched.repeated_flops // num_steps


def measure_on_gpu(
    config: RunConfig,
    settings: MethodConfig,
    loss: Loss,
    model: SplitModel,
    batch: tuple[Tensor, Tensor],
    device: torch.device,
    allocator: Allocator = torch.cuda,
) -> CostFigures:
    """Take a client step on an accelerator, on a copy of ``model``.

    Twice: the first counts FLOPs, and makes libraries allocate the workspaces that they keep.
    """
    own = copy.deepcopy(model)
    own.full_model.to(device)
    inputs, labels = (part.to(device) for part in batch)
    step = METHODS[config.method].client_step(settings, own, loss, inputs, labels)
    flops = measure(step).flops
    with unshared_directions():
        return CostFigures(
            client_step_flops=flops,
            client_peak_memory_bytes=allocator_peak(step, device, allocator),
        )


def step_figures(costs: StepCosts) -> CostFigures:
    """Return the figures of a step alone."""
    return CostFigures(
        client_step_flops=costs.flops, client_peak_memory_bytes=costs.peak_memory_bytes
    )


def _with_step(figures: CostFigures, flops: int | None, peak: int | None) -> CostFigures:
    return dataclasses.replace(figures, client_step_flops=flops, client_peak_memory_bytes=peak)


def _predicted_step(
    outcome: Outcome, task: Task, watched: WatchedRound
) -> tuple[int | None, int | None]:
    """Return (FLOPs of a mean step, peak) of the client that counted, on batches like its own.

    On full batches that is what was measured before the run, and what a plan says, to the byte.
    """
    config = outcome.config
    groups = [group for group in outcome.boundaries if watched.client_id in group.clients]
    boundary = groups[0].boundary if groups else None
    known = outcome.boundary_costs.get(boundary or "", outcome.client_costs)
    costs = {(config.batch_size, *task.input_shape): known} if known is not None else {}
    try:
        planner = None
        for shape in dict.fromkeys(watched.batches):
            if shape not in costs:
                planner = planner or Planner(config, Problem.of(task))
                costs[shape] = planner.step_costs(config, shape, boundary)
    except UserError:  # it cannot be followed without values
        return None, None
    steps = [costs[shape] for shape in watched.batches]
    flops = round(sum(step.flops for step in steps) / len(steps))
    return flops, max(step.peak_memory_bytes for step in steps)


def _client_data(config: RunConfig, task: Task) -> Callable[[int], ClientData]:
    """Return client id -> its samples; the partition is drawn when the first is asked for."""
    everybody = functools.cache(lambda: task_client_data(config.workload(), task))

    @functools.cache
    def of_one(client_id: int) -> ClientData:
        return everybody()(client_id)

    return of_one
