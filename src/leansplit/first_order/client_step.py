"""The first-order client half that split federated learning needs and HO-SFL removes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leansplit.first_order.server_step import Loss
from leansplit.noise.torch_rng import torch_seeded


def train_forward(model: nn.Module, inputs: Tensor, *, dropout_seed: int) -> Tensor:
    """Run the client model in training mode and keep the graph; returns z [B, ...]."""
    model.train()
    with torch_seeded(dropout_seed), torch.enable_grad():
        smashed: Tensor = model(inputs)
    return smashed


def backward_step(
    optimizer: torch.optim.Optimizer | None, smashed_data: Tensor, smashed_gradient: Tensor
) -> None:
    """Back-propagate lambda from the cut and take one optimizer step on the client model."""
    if optimizer is None:
        return
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward([smashed_data], [smashed_gradient])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # the next forward pass need not hold them


def local_step(
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer | None,
    inputs: Tensor,
    labels: Tensor,
    *,
    dropout_seed: int,
) -> float:
    """Take one ordinary training step on a whole model; returns the batch's mean loss."""
    outputs = train_forward(model, inputs, dropout_seed=dropout_seed)
    with torch.enable_grad():
        value = loss(outputs, labels)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the next forward pass need not hold them
    return float(value.detach())
