"""FedAvg as one plain loop (McMahan et al., AISTATS 2017): documentation and oracle.

The average is Flower's own arithmetic: float32 products and sums in the order of client ids.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from leansplit.federated import (
    ClientData,
    FedAvgConfig,
    aggregate,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    sample_weights,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import client_dropout_seed, torch_seeded
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, cohorts, go_on


def fedavg(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: FedAvgConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    seed = config.root_seed
    full_model = model.full_model
    client_moments: dict[int, dict[str, Tensor]] = {}

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        states, num_samples = [], []
        for m in cohort:
            # 1. Download theta. 2. Local first-order steps on the whole model.
            local = copy.deepcopy(full_model).train()
            optimizer = build_optimizer(config.client_optimizer, local.parameters())
            assert optimizer is not None
            if config.client_optimizer.outlives_round:
                load_optimizer_state_(optimizer, client_moments.get(m, {}))
            samples = 0
            for h in range(config.local_steps):
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                samples += len(y)
                if not config.client_optimizer.outlives_batch:
                    optimizer = build_optimizer(config.client_optimizer, local.parameters())
                    assert optimizer is not None
                with torch_seeded(client_dropout_seed(seed, t, m, h)):
                    value = loss(local(x), y)
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            client_moments[m] = optimizer_state(optimizer)
            states.append(trainable_parameters(local))
            num_samples.append(samples)
        # 3. Upload; 4. sample-weighted mean.
        factors = sample_weights(num_samples)
        mean = {
            name: torch.from_numpy(
                _float32_sum([state[name] for state in states], factors)  # Flower's order
            )
            for name in states[0]
        }
        if config.robust.rule != "mean":
            mean = aggregate(states, factors, trainable_parameters(full_model), config.robust)
        load_parameters_(full_model, mean)


def _float32_sum(tensors: Sequence[Tensor], factors: Sequence[float]):  # type: ignore[no-untyped-def]
    total = tensors[0].cpu().numpy() * factors[0]
    for tensor, factor in zip(tensors[1:], factors[1:], strict=True):
        total += tensor.cpu().numpy() * factor
    return total
