"""The frozen-client control as one plain loop: documentation and oracle.

Clients upload smashed data and labels of a constant client model; only the server trains.
Without this row no accuracy claim about client training is attributable. ``features_once`` changes
what crosses and nothing that is computed, so the loop does not look at it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leansplit.federated import (
    ClientData,
    FrozenConfig,
    build_optimizer,
    sample_weights,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import server_dropout_seed, torch_seeded
from leansplit.reference.rounds import AfterRound, cohorts, go_on
from leansplit.sequences import join


def frozen(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: FrozenConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model.server_model`` in place; arguments as in :func:`ho_sfl`."""
    seed = config.root_seed
    client_model = model.client_model.eval()
    server_model = model.server_model.train()
    optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        data = [take_batch(clients[m], seed, t, m, batch_size=config.batch_size) for m in cohort]
        sizes = [len(y) for _, y in data]
        with torch.inference_mode():
            smashed = [client_model(x) for x, _ in data]
        if not config.server_optimizer.outlives_round:
            optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
        assert optimizer is not None
        with torch_seeded(server_dropout_seed(seed, t)):
            outputs = server_model(join(smashed).detach().clone()).split(sizes)
            losses = [loss(o, y) for o, (_, y) in zip(outputs, data, strict=True)]
        weights = sample_weights(sizes)
        mean_loss = torch.stack([w * v for w, v in zip(weights, losses, strict=True)]).sum()
        optimizer.zero_grad(set_to_none=True)
        mean_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
