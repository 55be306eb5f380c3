"""What one step of one client costs under each method, measured on the real computation.

The steps here are the clients' own arithmetic without messages: what a device has to compute and
to hold at once. Copies that only a simulation makes are not in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leansplit.costs import count_flops, peak_tensor_bytes
from leansplit.federated import (
    OptimizerConfig,
    TrainedVector,
    ZOSplitConfig,
    build_optimizer,
)
from leansplit.first_order import (
    Loss,
    backward_step,
    local_step,
    recompute_forward,
    recompute_step,
    train_forward,
)
from leansplit.models import SplitModel, chain
from leansplit.noise import perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import (
    LossObjective,
    SurrogateObjective,
    ZerothOrderConfig,
    estimate,
    forward_only,
    probe,
    probe_smashed_data,
    unshared_directions,
)


@dataclass(frozen=True)
class ClientCosts:
    """Measured on the CPU on one batch.

    Attributes:
        flops: by torch's counter, a multiply-accumulate counting 2.
        peak_memory_bytes: live tensor storage, parameters and batch included; optimizer state where
            the step contains the update, so not for HO-SFL, HOSL and the frozen client.
    """

    flops: int
    peak_memory_bytes: int


def measure(step: Callable[[], object]) -> ClientCosts:
    """Run ``step`` twice and measure it; the first run creates optimizer state."""
    with unshared_directions():  # a device serves one client and keeps no drawn directions
        flops = count_flops(step)
        return ClientCosts(flops, peak_tensor_bytes(step))


def zeroth_order_step(
    model: SplitModel, inputs: Tensor, config: ZerothOrderConfig
) -> Callable[[], object]:
    """HO-SFL: one anchor pass, then the probes against a given smashed gradient."""
    client_model = model.client_model.eval()
    parameters = trainable_parameters(client_model)
    spec = ParameterSpec.of(parameters)
    vector = spec.flatten(parameters)
    seeds = perturbation_seeds(0, config.num_perturbations, round=1)

    def step() -> None:
        smashed = forward_only(client_model, spec.views(vector), inputs)
        objective = SurrogateObjective(client_model, inputs, torch.ones_like(smashed))
        anchor = objective.value_of(smashed)
        del smashed
        probe(objective, spec, vector, seeds, config, anchor=anchor)

    return step


def probed_forward_step(
    model: SplitModel, inputs: Tensor, config: ZerothOrderConfig
) -> Callable[[], object]:
    """HOSL: smashed data at the model and at every probe, held until they are uploaded."""
    client_model = model.client_model.eval()
    parameters = trainable_parameters(client_model)
    spec = ParameterSpec.of(parameters)
    vector = spec.flatten(parameters)
    seeds = perturbation_seeds(0, config.num_perturbations, round=1)
    return lambda: probe_smashed_data(
        client_model, spec, vector, inputs, seeds, config, with_anchor=True
    )


def loss_probe_step(
    model: SplitModel,
    loss: Loss,
    inputs: Tensor,
    labels: Tensor,
    optimizer: OptimizerConfig,
    config: ZerothOrderConfig,
) -> Callable[[], object]:
    """DeComFL and FedZO: the probes of the client's own loss, then one optimizer step."""
    full_model = model.full_model.eval()
    theta = TrainedVector(trainable_parameters(full_model), optimizer)
    seeds = perturbation_seeds(0, config.num_perturbations, round=1)

    def step() -> None:
        objective = LossObjective(full_model, loss, inputs, labels)
        v = probe(objective, theta.spec, theta.vector, seeds, config)
        theta.step_(estimate(theta.spec, seeds, v, config, device=theta.vector.device))

    return step


def zeroth_order_local_step(
    model: SplitModel, inputs: Tensor, config: ZOSplitConfig
) -> Callable[[], object]:
    """MU-SplitFed and ZO-SFL: all probes of a batch, held until sent, then the update."""
    client_model = model.client_model.eval()
    theta = TrainedVector(trainable_parameters(client_model), config.client_optimizer)
    zo = config.zeroth_order
    seeds = perturbation_seeds(0, zo.num_perturbations, round=1)
    scalars = torch.zeros(len(seeds))

    def step() -> None:
        probe_smashed_data(
            client_model,
            theta.spec,
            theta.vector,
            inputs,
            seeds,
            zo,
            with_anchor=config.sends_anchor,
        )
        theta.step_(estimate(theta.spec, seeds, scalars, zo, device=theta.vector.device))

    return step


def first_order_step(
    model: SplitModel, inputs: Tensor, optimizer: OptimizerConfig
) -> Callable[[], object]:
    """SFL: forward, backward from the cut, optimizer step."""
    client_model = model.client_model
    stepper = build_optimizer(optimizer, client_model.parameters())

    def step() -> None:
        smashed = train_forward(client_model, inputs, dropout_seed=0)
        backward_step(stepper, smashed, torch.zeros_like(smashed))

    return step


def recomputing_step(
    model: SplitModel, inputs: Tensor, optimizer: OptimizerConfig, micro_batch: int
) -> Callable[[], object]:
    """SFL without a kept graph: forward, then recomputation from the cut, optimizer step."""
    links = chain(model.client_model)
    stepper = build_optimizer(optimizer, model.client_model.parameters())

    def step() -> None:
        smashed = recompute_forward(links, inputs, dropout_seed=0, micro_batch=micro_batch)
        gradient = torch.zeros_like(smashed)
        del smashed  # it was uploaded; the gradient comes back in its place
        recompute_step(stepper, links, inputs, gradient, dropout_seed=0, micro_batch=micro_batch)

    return step


def full_model_step(
    model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor, optimizer: OptimizerConfig
) -> Callable[[], object]:
    """FedAvg: an ordinary training step on the whole model."""
    full_model = model.full_model
    stepper = build_optimizer(optimizer, full_model.parameters())
    return lambda: local_step(full_model, loss, stepper, inputs, labels, dropout_seed=0)


def forward_step(model: SplitModel, inputs: Tensor) -> Callable[[], object]:
    """Frozen client: one forward pass."""
    client_model = model.client_model.eval()
    parameters = trainable_parameters(client_model)
    return lambda: forward_only(client_model, parameters, inputs)
