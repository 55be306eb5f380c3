"""First-order client steps that need no answer from the server: an auxiliary head stands in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leansplit.first_order.client_step import backward_step, train_forward
from leansplit.first_order.server_step import Loss
from leansplit.models import LocalModel
from leansplit.noise.torch_rng import torch_seeded


def local_loss_step(
    model: LocalModel,
    loss: Loss,
    optimizer: torch.optim.Optimizer | None,
    inputs: Tensor,
    labels: Tensor,
    *,
    dropout_seed: int,
) -> Tensor:
    """CSE-FSL: one step of client model and head on the local loss.

    Returns:
        z [B, ...], taken before the step.
    """
    model.train()
    with torch_seeded(dropout_seed), torch.enable_grad():
        smashed, outputs = model(inputs)
        value = loss(outputs, labels)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the next forward pass need not hold them
    detached: Tensor = smashed.detach()
    return detached


def imitated_step(
    model: LocalModel,
    loss: Loss,
    optimizer: torch.optim.Optimizer | None,
    inputs: Tensor,
    labels: Tensor,
    *,
    dropout_seed: int,
) -> Tensor:
    """FSL-SAGE: one step of the client model alone, on the gradient that the head imitates.

    Returns:
        z [B, ...], taken before the step.
    """
    smashed = train_forward(model.client, inputs, dropout_seed=dropout_seed)
    gradient = imitated_gradient(model.auxiliary, loss, smashed, labels)
    backward_step(optimizer, smashed, gradient)
    return smashed.detach()


def imitated_gradient(
    head: nn.Module, loss: Loss, smashed_data: Tensor, labels: Tensor, *, is_trained: bool = False
) -> Tensor:
    """Return d(mean loss)/dz through ``head`` in evaluation mode, the shape of ``smashed_data``.

    Args:
        head: the auxiliary head; or the server model, for the true gradient.
        loss: mean loss.
        smashed_data: z [B, ...]; no gradient flows into what made it.
        labels: y [B, ...].
        is_trained: keep the graph, so that the gradient itself can be differentiated with respect
            to the head's parameters. Clients do not need it and do not pay for it.
    """
    head.eval()
    z = smashed_data.detach().requires_grad_(True)
    with torch.enable_grad():
        if is_trained:
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels' gradients have no gradient
                value = loss(head(z), labels)
            [gradient] = torch.autograd.grad(value, [z], create_graph=True)
            return gradient
        value = loss(head(z), labels)
        # Not autograd.grad: torch's FLOP counter cannot watch a leaf that it captures.
        torch.autograd.backward([value], inputs=[z])
    assert z.grad is not None
    return z.grad
