"""DeComFL as one plain loop (ICLR 2025): documentation and oracle.

Clients hold the whole model and take h local zeroth-order steps along shared directions; the
server averages the scalars of each step and direction, and everybody replays the means.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    DeComFLConfig,
    aggregate_scalars,
    build_optimizer,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import draw_perturbation, second_moment_inverse
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, cohorts, go_on


def decomfl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: DeComFLConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    zo, seed = config.zeroth_order, config.root_seed
    mu, num_directions = zo.perturbation_scale, zo.num_perturbations
    full_model = model.full_model.eval()
    initial = trainable_parameters(full_model)
    spec = ParameterSpec.of(initial)
    theta = spec.flatten(initial)

    def loss_at(vector: Tensor, x: Tensor, y: Tensor) -> float:
        with torch.inference_mode():
            return float(loss(functional_call(full_model, spec.views(vector), (x,)), y))

    def rebuilt(directions: list[Tensor], v: Tensor) -> Tensor:
        width = 1.0 if zo.estimator == "forward" else 2.0
        factor = second_moment_inverse(zo.direction, spec.num_elements)
        gradient = torch.zeros_like(theta)
        for u, value in zip(directions, v.tolist(), strict=True):
            gradient += u * (factor * (value / (width * num_directions * mu)))
        return gradient

    def optimizer_of(
        vector: Tensor, kept: torch.optim.Optimizer | None = None
    ) -> torch.optim.Optimizer:
        """Return a fresh optimizer of ``vector``, or one with the moments of ``kept``."""
        optimizer = build_optimizer(config.client_optimizer, [vector])
        assert optimizer is not None
        if kept is not None:
            optimizer.load_state_dict(copy.deepcopy(kept.state_dict()))
        return optimizer

    optimizer = optimizer_of(theta)
    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        # 1. The server samples a cohort and P directions for each local step.
        directions = [
            [
                draw_perturbation(s, spec.num_elements, direction=zo.direction, device=theta.device)
                for s in zo.shared_seeds(seed, round=t, local_step=h)
            ]
            for h in range(config.local_steps)
        ]
        if not config.client_optimizer.outlives_round:
            optimizer = optimizer_of(theta)

        scalars, num_samples = [], []
        for m in cohort:
            # 3. Local steps on a copy, moments included. 4. Only the scalars are kept.
            local = theta.detach().clone()
            local_optimizer = optimizer_of(local, optimizer)
            uploaded, samples = [], 0
            for h in range(config.local_steps):
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                samples += len(y)
                v = []
                for u in directions[h]:
                    at_minus = local - u * mu if zo.estimator == "central" else local
                    v.append(loss_at(local + u * mu, x, y) - loss_at(at_minus, x, y))
                uploaded.append(torch.tensor(v, dtype=torch.float32))
                if not config.client_optimizer.outlives_batch:
                    local_optimizer = optimizer_of(local)
                local.grad = rebuilt(directions[h], uploaded[-1])
                local_optimizer.step()
            scalars.append(config.released_scalars(torch.stack(uploaded), t, m))
            num_samples.append(samples)

        # 6. The mean for each step and direction, replayed as h successive steps.
        shares = [samples / sum(num_samples) for samples in num_samples]
        mean = aggregate_scalars([v_m.reshape(-1) for v_m in scalars], shares, config.robust)
        for h, v_h in enumerate(torch.tensor(mean).double().reshape(-1, num_directions)):
            if not config.client_optimizer.outlives_batch:
                optimizer = optimizer_of(theta)
            theta.grad = rebuilt(directions[h], v_h)
            optimizer.step()
        load_parameters_(full_model, spec.views(theta))
