"""What one step of one client costs under each method, measured on the real computation.

The steps here are the clients' own arithmetic without messages: what a device has to compute and
to hold at once, its model and its optimizer's moments included. Copies that only a simulation makes
are not in them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from leansplit.costs import ClientStep, StepCosts, held_weights, measure_step
from leansplit.federated import (
    DeComFLConfig,
    FedAvgConfig,
    FedZOConfig,
    HOSFLConfig,
    HOSLConfig,
    Replica,
    ReplicatedConfig,
    SplitFedConfig,
    TrainedVector,
    Update,
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
from leansplit.parameters import trainable_parameters
from leansplit.telling import naming_logits
from leansplit.zeroth_order import (
    LossObjective,
    SurrogateObjective,
    estimate,
    forward_only,
    probe,
    probe_smashed_data,
    unshared_directions,
)


def measure(step: ClientStep) -> StepCosts:
    """Measure a step as a device takes it: it serves one client and keeps no drawn directions."""
    with unshared_directions():
        return measure_step(step)


def _replica(module: nn.Module, config: ReplicatedConfig) -> Replica:
    return Replica(trainable_parameters(module), config.client_optimizer, config.zeroth_order)


def _bring_up_to_date(replica: Replica, seeds: tuple[int, ...]) -> None:
    """Take the step of the round before, as a request brings it."""
    replica.apply_(Update(replica.version + 1, seeds, (0.0,) * len(seeds)))


def _step_of(
    replica: Replica, module: nn.Module, run: Callable[[], object], *batch: Tensor
) -> ClientStep:
    """Return the step of a client that holds ``replica`` in place of the trained weights."""
    return ClientStep(
        run=run,
        weights=[replica.vector, *held_weights(module, but_trained=True)],
        batch=batch,
        optimizers=[replica.kept_optimizer],
    )


def zeroth_order_step(model: SplitModel, inputs: Tensor, config: HOSFLConfig) -> ClientStep:
    """HO-SFL: the last round's update, one anchor pass, the probes against a smashed gradient."""
    client_model = model.client_model.eval()
    replica = _replica(client_model, config)
    zo = config.zeroth_order
    seeds = perturbation_seeds(0, zo.num_perturbations, round=1)

    def step() -> None:
        _bring_up_to_date(replica, seeds)
        smashed = forward_only(client_model, replica.parameters, inputs, config.micro_batch)
        objective = SurrogateObjective(
            client_model, inputs, torch.ones_like(smashed), config.micro_batch
        )
        anchor = objective.value_of(smashed)
        del smashed
        probe(objective, replica.spec, replica.vector, seeds, zo, anchor=anchor)

    return _step_of(replica, client_model, step, inputs)


def probed_forward_step(
    model: SplitModel, inputs: Tensor, config: HOSFLConfig | HOSLConfig, micro_batch: int = 0
) -> ClientStep:
    """HOSL, and HO-SFL that probes ahead: the last round's update, then z and all perturbed z.

    They are held until they are uploaded, in one message.
    """
    client_model = model.client_model.eval()
    replica = _replica(client_model, config)
    zo = config.zeroth_order
    seeds = perturbation_seeds(0, zo.num_perturbations, round=1)

    def step() -> None:
        _bring_up_to_date(replica, seeds)
        probe_smashed_data(
            client_model,
            replica.spec,
            replica.vector,
            inputs,
            seeds,
            zo,
            with_anchor=True,
            micro_batch=micro_batch,
        )

    return _step_of(replica, client_model, step, inputs)


def loss_probe_step(
    model: SplitModel,
    loss: Loss,
    inputs: Tensor,
    labels: Tensor,
    config: DeComFLConfig | FedZOConfig,
) -> ClientStep:
    """DeComFL and FedZO: the probes of the client's own loss, then one optimizer step.

    A client of DeComFL that takes several local steps also keeps the weights that its round started
    from, which it goes back to. With one, its step is the update of the round before.
    """
    full_model = model.full_model.eval()
    zo = config.zeroth_order
    seeds = perturbation_seeds(0, zo.num_perturbations, round=1)
    objective = LossObjective(full_model, naming_logits(loss), inputs, labels)
    replica = _replica(full_model, config) if isinstance(config, DeComFLConfig) else None

    def probe_and_forget() -> None:
        assert replica is not None
        _bring_up_to_date(replica, seeds)
        probe(objective, replica.spec, replica.vector, seeds, zo)

    if replica is not None and config.local_steps == 1:
        return _step_of(replica, full_model, probe_and_forget, inputs, labels)
    theta = TrainedVector(trainable_parameters(full_model), config.client_optimizer)
    start, kept = [], [theta.optimizer]
    if replica is not None:
        start, kept = [replica.vector], [theta.optimizer, replica.kept_optimizer]

    def step() -> None:
        v = probe(objective, theta.spec, theta.vector, seeds, zo)
        theta.step_(estimate(theta.spec, seeds, v, zo, device=theta.vector.device))

    return ClientStep(
        run=step,
        weights=[theta.vector, *start, *held_weights(full_model, but_trained=True)],
        batch=(inputs, labels),
        optimizers=kept,
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def zeroth_order_local_step(model: SplitModel, inputs: Tensor, config: ZOSplitConfig) -> ClientStep:
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

    return ClientStep(
        run=step,
        weights=[theta.vector, *held_weights(client_model, but_trained=True)],
        batch=[inputs, scalars],
        optimizers=[theta.optimizer],
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def first_order_step(model: SplitModel, inputs: Tensor, config: SplitFedConfig) -> ClientStep:
    """SFL: forward, backward from the cut, optimizer step."""
    client_model = model.client_model
    stepper = build_optimizer(config.client_optimizer, client_model.parameters())

    def step() -> None:
        smashed = train_forward(client_model, inputs, dropout_seed=0)
        backward_step(stepper, smashed, torch.zeros_like(smashed))

    return _first_order(client_model, inputs, config, stepper, step)


def recomputing_step(model: SplitModel, inputs: Tensor, config: SplitFedConfig) -> ClientStep:
    """SFL without a kept graph: forward, then recomputation from the cut, optimizer step."""
    links = chain(model.client_model)
    stepper = build_optimizer(config.client_optimizer, model.client_model.parameters())
    micro_batch = config.micro_batch

    def step() -> None:
        smashed = recompute_forward(links, inputs, dropout_seed=0, micro_batch=micro_batch)
        gradient = torch.zeros_like(smashed)
        del smashed  # it was uploaded; the gradient comes back in its place
        recompute_step(stepper, links, inputs, gradient, dropout_seed=0, micro_batch=micro_batch)

    return _first_order(model.client_model, inputs, config, stepper, step)


def _first_order(
    client_model: nn.Module,
    inputs: Tensor,
    config: SplitFedConfig,
    stepper: torch.optim.Optimizer | None,
    run: Callable[[], object],
) -> ClientStep:
    return ClientStep(
        run=run,
        weights=held_weights(client_model),
        batch=[inputs],
        optimizers=[stepper],
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def full_model_step(
    model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor, config: FedAvgConfig
) -> ClientStep:
    """FedAvg: an ordinary training step on the whole model."""
    full_model = model.full_model
    stepper = build_optimizer(config.client_optimizer, full_model.parameters())
    named = naming_logits(loss)
    return ClientStep(
        run=lambda: local_step(full_model, named, stepper, inputs, labels, dropout_seed=0),
        weights=held_weights(full_model),
        batch=(inputs, labels),
        optimizers=[stepper],
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def forward_step(model: SplitModel, inputs: Tensor, micro_batch: int = 0) -> ClientStep:
    """Frozen client: one forward pass, of ``micro_batch`` samples at a time (0 = all)."""
    client_model = model.client_model.eval()
    parameters = trainable_parameters(client_model)
    return ClientStep(
        run=lambda: forward_only(client_model, parameters, inputs, micro_batch),
        weights=held_weights(client_model),
        batch=[inputs],
    )
