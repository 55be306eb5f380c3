"""The frozen-client control as one plain loop: documentation and oracle.

Clients upload smashed data and labels of a constant client model; only the server trains.
Without this row no accuracy claim about client training is attributable. ``features_once`` changes
what crosses; of what is computed, only the noise, which a sample then gets once and for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class _Features:
    """Smashed data of all of a client's samples, and their labels."""

    inputs: Tensor
    labels: Tensor


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
    features: dict[int, ClientData] = {}

    @torch.inference_mode()
    def f_c(x: Tensor) -> Tensor:
        z: Tensor = client_model(x)
        return z

    def all_smashed(m: int) -> Tensor:
        # In batches of the usual size, the last filled up: kernels round differently for others.
        x, size = clients[m].inputs, min(config.batch_size, len(clients[m].inputs))
        filled = torch.arange(-(-len(x) // size) * size) % len(x)
        return join([f_c(x[part]) for part in torch.split(filled, size)])[: len(x)]

    def uploaded(t: int, m: int) -> tuple[Tensor, Tensor]:
        release = partial(
            config.released_smashed_data, round=t, client_id=m, upload=0, has_mask=model.has_mask
        )
        if config.features_once:
            if m not in features:
                features[m] = _Features(release(all_smashed(m)), clients[m].labels)
            return take_batch(features[m], seed, t, m, batch_size=config.batch_size)
        x, y = take_batch(clients[m], seed, t, m, batch_size=config.batch_size)
        return release(f_c(x)), y

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        data = [uploaded(t, m) for m in cohort]
        sizes = [len(y) for _, y in data]
        smashed = [z for z, _ in data]
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
