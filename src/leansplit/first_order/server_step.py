"""The server's first-order half: forward from the cut, backward to the cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leansplit.noise.torch_rng import torch_seeded
from leansplit.sequences import join, part

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [B, ...], labels [B, ...]) -> mean loss, a scalar tensor."""


class NonFiniteLossError(ArithmeticError):
    """A loss is infinite or not a number; the server model has learned nothing from it.

    Attributes:
        losses: mean loss of each client's batch.
    """

    def __init__(self, losses: Sequence[float]) -> None:
        super().__init__(f"non-finite loss among {list(losses)}")
        self.losses = tuple(losses)


@dataclass(frozen=True)
class ServerStep:
    """What one server step hands back.

    Attributes:
        losses: mean loss of each client's batch.
        smashed_gradients: lambda_m = d(mean loss of client m)/dz_m for each client, the shape of
            its smashed data; *not* multiplied by the client's weight.
    """

    losses: tuple[float, ...]
    smashed_gradients: tuple[Tensor, ...]


def server_step(
    server_model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer | None,
    smashed_data: Sequence[Tensor],
    labels: Sequence[Tensor],
    weights: Sequence[float],
    *,
    dropout_seed: int,
) -> ServerStep:
    """Take one optimizer step on sum_m w_m l_m and return every client's smashed gradient.

    All batches go through the server model together; batch normalisation in training mode would
    therefore see them as one batch.

    Args:
        server_model: the layers above the cut, put in training mode.
        loss: mean loss.
        optimizer: over the server model's parameters; None leaves them as they are.
        smashed_data: z_m for each client, shape [B_m, ...].
        labels: y_m for each client, shape [B_m, ...].
        weights: w_m for each client, above 0, usually its share of the samples.
        dropout_seed: seed for random layers.

    Raises:
        NonFiniteLossError: before anything is learned, if a client's loss is no finite number.
    """
    server_model.train()
    joint = join(smashed_data).detach().requires_grad_(True)
    sizes = [len(z) for z in smashed_data]
    with torch_seeded(dropout_seed), torch.enable_grad():
        outputs = torch.split(server_model(joint), sizes)
        losses = [loss(output, y) for output, y in zip(outputs, labels, strict=True)]
        found = tuple(float(value.detach()) for value in losses)
        if not all(map(math.isfinite, found)):
            raise NonFiniteLossError(found)
        total = torch.stack([w * value for w, value in zip(weights, losses, strict=True)]).sum()
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
    if optimizer is not None:
        optimizer.step()
    assert joint.grad is not None
    gradients = part(joint.grad, smashed_data)
    return ServerStep(
        losses=found,
        smashed_gradients=tuple(
            g if w == 1 else g / w for g, w in zip(gradients, weights, strict=True)
        ),
    )
