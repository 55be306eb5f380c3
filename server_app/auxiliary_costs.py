"""One client step of the methods with auxiliary heads, to be measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leansplit.costs import ClientStep, held_weights
from leansplit.federated import (
    AuxiliaryMethodConfig,
    CSEFSLConfig,
    FSLSAGEConfig,
    HeronSFLConfig,
    LocalLossConfig,
    TrainedVector,
    build_optimizer,
)
from leansplit.first_order import Loss, imitated_step, local_loss_step
from leansplit.models import LocalModel, SplitModel, build_auxiliary
from leansplit.models.language.halves import LanguageClientModel
from leansplit.noise import auxiliary_seed, local_perturbation_seeds
from leansplit.parameters import trainable_parameters
from leansplit.telling import naming_logits
from leansplit.zeroth_order import LocalLossObjective, estimate, probe


def with_head(config: AuxiliaryMethodConfig, model: SplitModel, smashed: Tensor) -> LocalModel:
    """Return the client model with its auxiliary head; ``smashed`` is z of one sample [1, ...]."""
    shape = tuple(smashed.shape[1:])
    head = build_auxiliary(config.auxiliary, model, shape, seed=auxiliary_seed(config.root_seed))
    return LocalModel(model.client_model, head)


def _built(config: AuxiliaryMethodConfig, model: SplitModel, inputs: Tensor) -> LocalModel:
    if isinstance(model.client_model, LanguageClientModel):  # of which no pass is needed
        smashed = inputs.new_empty((1, inputs.shape[-1], model.client_model.smashed_width))
        return with_head(config, model, smashed)
    with torch.inference_mode():
        smashed = model.client_model.eval()(inputs[:1])
    return with_head(config, model, smashed)


def _trained(
    config: LocalLossConfig, model: SplitModel, inputs: Tensor
) -> tuple[LocalModel, Callable[[], Tensor]]:
    """Return what is trained, and what makes its inputs: a pass of the client model if frozen."""
    local = _built(config, model, inputs)
    if not config.frozen_client:
        return local, lambda: inputs

    def smashed_data() -> Tensor:
        with torch.no_grad():
            smashed: Tensor = local.client.eval()(inputs)
        return smashed

    return local.head_alone(), smashed_data


def local_loss_client_step(
    config: CSEFSLConfig, model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor
) -> ClientStep:
    """CSE-FSL: forward and backward through client model and head, optimizer step."""
    local, make_inputs = _trained(config, model, inputs)
    optimizer = build_optimizer(config.client_optimizer, local.parameters())
    named = naming_logits(loss)
    return ClientStep(
        run=lambda: local_loss_step(local, named, optimizer, make_inputs(), labels, dropout_seed=0),
        weights=_held(local, model),
        batch=(inputs, labels),
        optimizers=[optimizer],
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def imitated_client_step(
    config: FSLSAGEConfig, model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor
) -> ClientStep:
    """FSL-SAGE: the head's gradient at the cut, backward through the client model, step."""
    local = _built(config, model, inputs)
    optimizer = build_optimizer(config.client_optimizer, local.client.parameters())
    named = naming_logits(loss)
    return ClientStep(
        run=lambda: imitated_step(local, named, optimizer, inputs, labels, dropout_seed=0),
        weights=held_weights(local),
        batch=(inputs, labels),
        optimizers=[optimizer],
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def local_zeroth_order_client_step(
    config: HeronSFLConfig, model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor
) -> ClientStep:
    """HERON-SFL: unperturbed pass with upload, P probes, estimate, optimizer step."""
    zo = config.zeroth_order
    local, make_inputs = _trained(config, model, inputs)
    local.eval()
    theta = TrainedVector(trainable_parameters(local), config.client_optimizer)
    named = naming_logits(loss)
    seeds = local_perturbation_seeds(0, zo.num_perturbations, round=1, client_id=0, local_step=0)

    def step() -> object:
        objective = LocalLossObjective(local, named, make_inputs(), labels)
        smashed, anchor = objective.evaluate_with_smashed_data(theta.parameters)
        differences = probe(objective, theta.spec, theta.vector, seeds, zo, anchor=anchor)
        theta.step_(estimate(theta.spec, seeds, differences, zo, device=theta.vector.device))
        return smashed

    return ClientStep(
        run=step,
        weights=[theta.vector, *_held(local, model, but_trained=True)],
        batch=(inputs, labels),
        optimizers=[theta.optimizer],
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def _held(local: LocalModel, model: SplitModel, *, but_trained: bool = False) -> list[Tensor]:
    """Return the weights of client model and head; the client model is frozen if not in ``local``.

    Without those that are trained, where a vector stands for them.
    """
    held = held_weights(local, but_trained=but_trained)
    is_frozen = local.client is not model.client_model
    return [*held, *held_weights(model.client_model)] if is_frozen else held
