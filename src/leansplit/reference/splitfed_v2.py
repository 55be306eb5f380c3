"""SFLV2 as one plain loop (Thapa et al., "SplitFed", AAAI 2022): documentation and oracle.

As SFLV1, but the one server model is trained on the clients' batches in turn and never averaged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from leansplit.federated import (
    ClientData,
    SplitFedConfig,
    aggregate,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    sample_weights,
    service_order,
    take_batch,
)
from leansplit.first_order import Loss, recompute_forward, recompute_gradients
from leansplit.models import SplitModel, chain
from leansplit.noise import client_dropout_seed, server_dropout_seed, torch_seeded
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, cohorts, go_on


def splitfed_v2(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: SplitFedConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    seed = config.root_seed
    is_recomputed = config.client_backward == "recompute"
    server_model = model.server_model.train()
    server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
    client_moments: dict[int, dict[str, Tensor]] = {}

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        # 1. Broadcast theta_c to the cohort, which is served in a fresh random order.
        order = service_order(seed, t, cohort)
        if not config.server_optimizer.outlives_round:
            server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
        models = {m: copy.deepcopy(model.client_model).train() for m in cohort}
        optimizers = {
            m: build_optimizer(config.client_optimizer, models[m].parameters()) for m in cohort
        }
        for m, optimizer in optimizers.items():
            if config.client_optimizer.outlives_round:
                load_optimizer_state_(optimizer, client_moments.get(m, {}))
        # 2. Client by client and batch by batch, or step by step over all clients.
        steps = range(config.local_steps)
        if config.client_order == "sequential":
            turns = [(m, h) for m in order for h in steps]
        else:
            turns = [(m, h) for h in steps for m in order]
        num_samples = dict.fromkeys(cohort, 0)
        for m, h in turns:
            x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
            num_samples[m] += len(y)
            if not config.client_optimizer.outlives_batch:
                optimizers[m] = build_optimizer(config.client_optimizer, models[m].parameters())
            if not config.server_optimizer.outlives_batch:
                server_optimizer = build_optimizer(
                    config.server_optimizer, server_model.parameters()
                )
            client_optimizer = optimizers[m]
            assert client_optimizer is not None and server_optimizer is not None
            dropout_seed = client_dropout_seed(seed, t, m, h)
            if is_recomputed:
                smashed = recompute_forward(
                    chain(models[m]), x, dropout_seed=dropout_seed, micro_batch=config.micro_batch
                )
            else:
                with torch_seeded(dropout_seed):
                    smashed = models[m](x)
            z = smashed.detach()
            z = config.released_smashed_data(z, t, m, h, has_mask=model.has_mask)
            z = z.requires_grad_(True)
            with torch_seeded(server_dropout_seed(seed, t, m, h)):
                value = loss(server_model(z), y)
            server_optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            server_optimizer.step()
            client_optimizer.zero_grad(set_to_none=True)
            assert z.grad is not None
            if is_recomputed:
                recompute_gradients(
                    chain(models[m]),
                    x,
                    z.grad,
                    dropout_seed=dropout_seed,
                    micro_batch=config.micro_batch,
                )
            else:
                torch.autograd.backward([smashed], [z.grad])
            client_optimizer.step()
        # 3. Average the client models; the server model is already one.
        for m in cohort:
            client_moments[m] = optimizer_state(optimizers[m])
        weights = sample_weights([num_samples[m] for m in cohort])
        states = [trainable_parameters(models[m]) for m in cohort]
        start = trainable_parameters(model.client_model)
        load_parameters_(model.client_model, aggregate(states, weights, start, config.robust))
