"""FSL-SAGE's alignment: an auxiliary head learns to imitate the server's gradient at the cut.

Gradients are compared sample by sample, g_j = d l_j / d z_j, where l_j is sample j's own loss. The
gradient of a mean over n samples is g_j / n, so it is multiplied by n: targets and imitations then
have one scale, whatever the sizes of buffer and batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from leansplit.first_order.auxiliary_step import imitated_gradient
from leansplit.first_order.server_step import Loss
from leansplit.noise import alignment_seed, numpy_generator


def align_(
    head: nn.Module,
    server_model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer | None,
    smashed_data: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    root_seed: int,
    round: int,
    client_id: int,
) -> None:
    """Train ``head`` on the mean over samples of ||imitated g_j - lambda_j||^2.

    Args:
        head: the auxiliary head; its parameters are stepped.
        server_model: gives the targets lambda_j at its current weights, in evaluation mode.
        loss: mean of per-sample losses.
        optimizer: over the head's parameters; None if it has none to train.
        smashed_data: the client's buffer, shape [n, ...].
        labels: the labels that came with it, shape [n, ...].
        epochs: passes over the buffer.
        batch_size: samples of a step.
        root_seed: of the order in which an epoch takes the samples.
        round: the current round.
        client_id: whose head it is.
    """
    num_samples = len(labels)
    if optimizer is None or not num_samples:
        return
    targets = num_samples * imitated_gradient(server_model, loss, smashed_data, labels)
    for epoch in range(epochs):
        generator = numpy_generator(alignment_seed(root_seed, round, client_id, epoch))
        order = torch.from_numpy(generator.permutation(num_samples).astype(np.int64))
        for chosen in torch.split(order, batch_size):
            z, y = smashed_data[chosen], labels[chosen]
            imitated = len(y) * imitated_gradient(head, loss, z, y, is_trained=True)
            error = (imitated - targets[chosen]).square().sum() / len(y)
            optimizer.zero_grad(set_to_none=True)
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
