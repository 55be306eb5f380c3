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
    build_optimizer,
    sample_cohort,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import draw_perturbation, perturbation_seeds
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters


def decomfl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: DeComFLConfig,
    num_rounds: int,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    zo, seed = config.zeroth_order, config.root_seed
    mu, num_directions = zo.perturbation_scale, zo.num_perturbations
    full_model = model.full_model.eval()
    initial = trainable_parameters(full_model)
    spec = ParameterSpec.of(initial)
    theta = spec.flatten(initial)
    optimizer = build_optimizer(config.client_optimizer, [theta])
    assert optimizer is not None

    def loss_at(vector: Tensor, x: Tensor, y: Tensor) -> float:
        with torch.inference_mode():
            return float(loss(functional_call(full_model, spec.views(vector), (x,)), y))

    def step_(
        stepper: torch.optim.Optimizer, vector: Tensor, directions: list[Tensor], v: Tensor
    ) -> None:
        width = 1.0 if zo.estimator == "forward" else 2.0
        gradient = torch.zeros_like(vector)
        for u, value in zip(directions, v.tolist(), strict=True):
            gradient += u * (value / (width * num_directions * mu))
        vector.grad = gradient
        stepper.step()

    for t in range(1, num_rounds + 1):
        # 1. The server samples a cohort and P directions for each local step.
        cohort = sample_cohort(seed, t, range(len(clients)), config.cohort_size)
        directions = [
            [
                draw_perturbation(s, spec.num_elements, direction=zo.direction)
                for s in perturbation_seeds(seed, num_directions, round=t, local_step=h)
            ]
            for h in range(config.local_steps)
        ]
        if config.client_optimizer.lifetime == "round":
            optimizer = build_optimizer(config.client_optimizer, [theta])
            assert optimizer is not None

        scalars, num_samples = [], []
        for m in cohort:
            # 3. Local steps on a copy, moments included. 4. Only the scalars are kept.
            local = theta.detach().clone()
            local_optimizer = build_optimizer(config.client_optimizer, [local])
            assert local_optimizer is not None
            local_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            uploaded, samples = [], 0
            for h in range(config.local_steps):
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                samples += len(y)
                v = []
                for u in directions[h]:
                    at_minus = local - u * mu if zo.estimator == "central" else local
                    v.append(loss_at(local + u * mu, x, y) - loss_at(at_minus, x, y))
                uploaded.append(torch.tensor(v, dtype=torch.float64).float())
                step_(local_optimizer, local, directions[h], uploaded[-1].double())
            scalars.append(torch.stack(uploaded))
            num_samples.append(samples)

        # 6. The mean for each step and direction, replayed as h successive steps.
        mean = torch.zeros(config.local_steps, num_directions, dtype=torch.float64)
        for samples, v_m in zip(num_samples, scalars, strict=True):
            mean += samples / sum(num_samples) * v_m.double()
        for h, v_h in enumerate(mean.float().double()):
            step_(optimizer, theta, directions[h], v_h)

    load_parameters_(full_model, spec.views(theta))
