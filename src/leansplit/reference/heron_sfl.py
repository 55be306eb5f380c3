"""HERON-SFL as one plain loop (arXiv 2601.09076): documentation and oracle.

Clients train client model and auxiliary head by zeroth-order steps on their own loss; the server
trains on the batches they upload and sends no gradient back. No client ever differentiates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    HeronSFLConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import draw_perturbation, local_perturbation_seeds, second_moment_inverse
from leansplit.parameters import ParameterDict, ParameterSpec, trainable_parameters
from leansplit.reference.auxiliary import Server, Upload, average_, samples_of, with_head
from leansplit.reference.rounds import AfterRound, cohorts, go_on


def heron_sfl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: HeronSFLConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> ParameterDict:
    """Train ``model`` in place; arguments as in :func:`ho_sfl`.

    Returns:
        theta_c and theta_a as the server holds them at the end.
    """
    seed, zo = config.root_seed, config.zeroth_order
    mu = zo.perturbation_scale
    local = with_head(model, clients, config).eval()
    trained_part = local.head_alone() if config.frozen_client else local
    spec = ParameterSpec.of(trainable_parameters(trained_part))
    released = partial(config.released_smashed_data, has_mask=model.has_mask)
    server = Server(model, loss, config)
    client_moments: dict[int, dict[str, Tensor]] = {}

    def forward(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            z, outputs = functional_call(trained_part, spec.views(theta), (x,))
            return z, loss(outputs.double(), y)

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        trained: dict[int, ParameterDict] = {}
        uploads: dict[int, list[Upload]] = {}
        for m in cohort:
            # 1. Download theta_l = (theta_c, theta_a).
            theta = spec.flatten(trainable_parameters(trained_part))
            optimizer = build_optimizer(config.client_optimizer, [theta])
            assert optimizer is not None
            if config.client_optimizer.outlives_round:
                load_optimizer_state_(optimizer, client_moments.get(m, {}))
            uploads[m] = []
            for h in range(config.local_steps):
                # 2. The local loss, unperturbed and at theta + mu u, for P private directions.
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                if config.frozen_client:  # a constant: the head is trained on z
                    with torch.no_grad():
                        x = local.client.eval()(x)
                z, value = forward(theta, x, y)
                seeds = local_perturbation_seeds(
                    seed, zo.num_perturbations, round=t, client_id=m, local_step=h
                )
                gradient = torch.zeros_like(theta)
                for s in seeds:
                    u = draw_perturbation(
                        s, spec.num_elements, direction=zo.direction, device=theta.device
                    )
                    plus = forward(theta + mu * u, x, y)[1]
                    minus, width = value, 1.0
                    if zo.estimator == "central":
                        minus, width = forward(theta - mu * u, x, y)[1], 2.0
                    slope = float(plus - minus) / (width * len(seeds) * mu)
                    gradient += second_moment_inverse(zo.direction, len(u)) * slope * u
                # 4. Every k-th step z and y go up, as they were before the update.
                if h % config.upload_period == 0:
                    uploads[m].append((released(z.clone(), t, m, len(uploads[m])), y))
                # 3. One optimizer step on the estimate.
                theta.grad = gradient
                optimizer.step()
            client_moments[m] = optimizer_state(optimizer)
            trained[m] = spec.views(theta.detach())
        # 5. The server steps on the uploads; 6. theta_c and theta_a are averaged.
        num_samples = samples_of(clients, cohort, config, t)
        server.train(t, uploads, num_samples)
        average_(local, trained, num_samples, config)
        local.eval()
    return trainable_parameters(local)
