"""HOSL as one plain loop (arXiv 2601.10940), for a cohort of clients: documentation and oracle.

The client model is trained by finite differences of the end-to-end loss, which the server
evaluates; the server model by backpropagation, after the probes. The paper is K = N = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    HOSLConfig,
    aggregate_scalars,
    build_optimizer,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import (
    draw_perturbation,
    second_moment_inverse,
    server_dropout_seed,
    torch_seeded,
)
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, cohorts, go_on
from leansplit.sequences import join


def hosl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: HOSLConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    zo = config.zeroth_order
    mu = zo.perturbation_scale
    client_model, server_model = model.client_model.eval(), model.server_model
    initial = trainable_parameters(client_model)
    spec = ParameterSpec.of(initial)
    theta = spec.flatten(initial)
    client_optimizer = build_optimizer(config.client_optimizer, [theta])
    server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
    assert client_optimizer is not None and server_optimizer is not None

    def smashed_at(vector: Tensor, x: Tensor) -> Tensor:
        with torch.inference_mode():
            z: Tensor = functional_call(client_model, spec.views(vector), (x,))
        return z

    def loss_at(z: Tensor, y: Tensor) -> float:
        with torch.inference_mode():
            return float(loss(server_model(z), y))

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        seeds = zo.shared_seeds(config.root_seed, round=t)
        directions = [
            draw_perturbation(s, spec.num_elements, direction=zo.direction, device=theta.device)
            for s in seeds
        ]
        data = [
            take_batch(clients[m], config.root_seed, t, m, batch_size=config.batch_size)
            for m in cohort
        ]
        sizes = [len(y) for _, y in data]
        weights = [size / sum(sizes) for size in sizes]

        # 1. Every client probes the end-to-end loss; the server model is frozen.
        server_model.eval()
        scalars, smashed = [], []
        for m, (x, y) in zip(cohort, data, strict=True):
            upload = partial(
                config.released_smashed_data,
                round=t,
                client_id=m,
                upload=0,
                has_mask=model.has_mask,
            )
            smashed.append(upload(smashed_at(theta, x)))
            v = []
            for p, u in enumerate(directions):
                minus = smashed[-1]
                if zo.estimator == "central":
                    minus = upload(smashed_at(theta - u * mu, x), probe=len(seeds) + p)
                plus = upload(smashed_at(theta + u * mu, x), probe=p)
                v.append(loss_at(plus, y) - loss_at(minus, y))
            scalars.append(torch.tensor(v, dtype=torch.float64))
        mean = aggregate_scalars(scalars, weights, config.robust)  # what crosses the wire

        # 2. The server takes one step on the mean loss at the clean smashed data.
        server_model.train()
        if not config.server_optimizer.outlives_round:
            server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
            assert server_optimizer is not None
        z = join(smashed).detach().clone()
        with torch_seeded(server_dropout_seed(config.root_seed, t)):
            outputs = torch.split(server_model(z), sizes)
            losses = [loss(o, y) for o, (_, y) in zip(outputs, data, strict=True)]
        mean_loss = torch.stack([w * v for w, v in zip(weights, losses, strict=True)]).sum()
        server_optimizer.zero_grad(set_to_none=True)
        mean_loss.backward()  # type: ignore[no-untyped-call]
        server_optimizer.step()

        # 3. Every client rebuilds the same gradient and takes the same optimizer step.
        width = 1.0 if zo.estimator == "forward" else 2.0
        factor = second_moment_inverse(zo.direction, spec.num_elements)
        gradient = torch.zeros_like(theta)
        for u, v_mean in zip(directions, mean, strict=True):
            gradient += u * (factor * (v_mean / (width * len(seeds) * mu)))
        if not config.client_optimizer.outlives_round:
            client_optimizer = build_optimizer(config.client_optimizer, [theta])
            assert client_optimizer is not None
        theta.grad = gradient
        client_optimizer.step()
        load_parameters_(client_model, spec.views(theta))
