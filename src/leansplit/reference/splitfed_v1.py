"""SFLV1 as one plain loop (Thapa et al., "SplitFed", AAAI 2022): documentation and oracle.

Every client trains its own copy of the client model against its own replica of the server
model; both kinds of copies are averaged at the end of the round.
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
    take_batch,
    weighted_mean,
)
from leansplit.first_order import Loss, recompute_forward, recompute_gradients
from leansplit.models import SplitModel, chain
from leansplit.noise import client_dropout_seed, server_dropout_seed, torch_seeded
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, cohorts, go_on


def splitfed_v1(
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
    client_moments: dict[int, dict[str, Tensor]] = {}
    server_moments: dict[str, Tensor] = {}

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        client_states, server_states, moments, num_samples = [], [], [], []
        for m in cohort:
            # 1. The client downloads theta_c; the server starts a replica for it.
            client_model = copy.deepcopy(model.client_model).train()
            server_model = copy.deepcopy(model.server_model).train()
            client_optimizer = build_optimizer(config.client_optimizer, client_model.parameters())
            server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
            if config.client_optimizer.outlives_round:
                load_optimizer_state_(client_optimizer, client_moments.get(m, {}))
            if config.server_optimizer.outlives_round:
                load_optimizer_state_(server_optimizer, server_moments)
            # 2. Per batch: forward, z and y up, replica step, lambda down, client step.
            samples = 0
            for h in range(config.local_steps):
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                samples += len(y)
                if not config.client_optimizer.outlives_batch:
                    client_optimizer = build_optimizer(
                        config.client_optimizer, client_model.parameters()
                    )
                if not config.server_optimizer.outlives_batch:
                    server_optimizer = build_optimizer(
                        config.server_optimizer, server_model.parameters()
                    )
                assert client_optimizer is not None and server_optimizer is not None
                dropout_seed = client_dropout_seed(seed, t, m, h)
                if is_recomputed:
                    smashed = recompute_forward(
                        chain(client_model),
                        x,
                        dropout_seed=dropout_seed,
                        micro_batch=config.micro_batch,
                    )
                else:
                    with torch_seeded(dropout_seed):
                        smashed = client_model(x)
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
                        chain(client_model),
                        x,
                        z.grad,
                        dropout_seed=dropout_seed,
                        micro_batch=config.micro_batch,
                    )
                else:
                    torch.autograd.backward([smashed], [z.grad])
                client_optimizer.step()
            client_moments[m] = optimizer_state(client_optimizer)
            client_states.append(trainable_parameters(client_model))
            server_states.append(trainable_parameters(server_model))
            moments.append(optimizer_state(server_optimizer))
            num_samples.append(samples)
        # 3. Average client models, server replicas and the replicas' moments.
        weights = sample_weights(num_samples)
        for half, states in (
            (model.client_model, client_states),
            (model.server_model, server_states),
        ):
            start = trainable_parameters(half)
            load_parameters_(half, aggregate(states, weights, start, config.robust))
        server_moments = weighted_mean(moments, weights)
