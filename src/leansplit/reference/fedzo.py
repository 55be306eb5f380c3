"""FedZO as one plain loop (arXiv 2201.09531, TSP 2022): documentation and oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    FedZOConfig,
    aggregate,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    sample_weights,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import draw_perturbation, local_perturbation_seeds, second_moment_inverse
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, cohorts, go_on


def fedzo(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: FedZOConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    zo, seed = config.zeroth_order, config.root_seed
    mu = zo.perturbation_scale
    full_model = model.full_model.eval()
    weights = trainable_parameters(full_model)  # views: they follow the global model
    spec = ParameterSpec.of(weights)
    moments: dict[int, dict[str, Tensor]] = {}

    def loss_at(vector: Tensor, x: Tensor, y: Tensor) -> float:
        with torch.inference_mode():
            return float(loss(functional_call(full_model, spec.views(vector), (x,)), y))

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        states, num_samples = [], []
        for m in cohort:
            # 1. Download theta. 2. H local steps, each along b2 directions of the client's own.
            theta = spec.flatten(weights)
            optimizer = build_optimizer(config.client_optimizer, [theta])
            if config.client_optimizer.outlives_round:
                load_optimizer_state_(optimizer, moments.get(m, {}))
            samples = 0
            for h in range(config.local_steps):
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                samples += len(y)
                seeds = local_perturbation_seeds(
                    seed, zo.num_perturbations, round=t, client_id=m, local_step=h
                )
                directions = [
                    draw_perturbation(
                        s, spec.num_elements, direction=zo.direction, device=theta.device
                    )
                    for s in seeds
                ]
                v = []
                for u in directions:
                    at_minus = theta - u * mu if zo.estimator == "central" else theta
                    v.append(loss_at(theta + u * mu, x, y) - loss_at(at_minus, x, y))
                width = 1.0 if zo.estimator == "forward" else 2.0
                factor = second_moment_inverse(zo.direction, spec.num_elements)
                gradient = torch.zeros_like(theta)
                for u, value in zip(
                    directions, torch.tensor(v, dtype=torch.float32).tolist(), strict=True
                ):
                    gradient += u * (factor * (value / (width * len(seeds) * mu)))
                if not config.client_optimizer.outlives_batch:
                    optimizer = build_optimizer(config.client_optimizer, [theta])
                assert optimizer is not None
                theta.grad = gradient
                optimizer.step()
            # 3. Upload the trained model.
            moments[m] = optimizer_state(optimizer)
            states.append(spec.views(theta.detach()))
            num_samples.append(samples)
        # 4. The sample-weighted mean: theta plus the mean difference of the paper.
        mean = aggregate(states, sample_weights(num_samples), weights, config.robust)
        load_parameters_(full_model, mean)
