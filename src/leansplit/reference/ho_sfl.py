"""HO-SFL as one plain loop (arXiv 2603.14773, ICML 2026): documentation and oracle.

The client model is trained by zeroth-order steps on the surrogate <lambda, f_c(x; theta)>, the
server model by backpropagation. No client ever differentiates; all clients hold one theta. Who
takes the inner products of step 5 (``probe_ahead``) changes no number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    HOSFLConfig,
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
from leansplit.sequences import join, part
from leansplit.zeroth_order import float64_inner_product


def ho_sfl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: HOSFLConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds.

    Args:
        model: client and server halves.
        loss: (outputs, labels) -> mean loss.
        clients: the data of client 0, 1, ...
        config: the method's settings.
        num_rounds: T.
        after_round: called with t after every round; False ends the loop there.
    """
    zo = config.zeroth_order
    mu = zo.perturbation_scale
    client_model = model.client_model.eval()
    server_model = model.server_model.train()
    initial = trainable_parameters(client_model)
    spec = ParameterSpec.of(initial)
    theta = spec.flatten(initial)
    client_optimizer = build_optimizer(config.client_optimizer, [theta])
    server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
    assert client_optimizer is not None and server_optimizer is not None

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        # 1. The server samples a cohort and P shared seeds.
        seeds = zo.shared_seeds(config.root_seed, round=t)
        directions = [
            draw_perturbation(s, spec.num_elements, direction=zo.direction, device=theta.device)
            for s in seeds
        ]

        # 3. Each client runs forward once and uploads its smashed data and labels.
        data = [
            take_batch(clients[m], config.root_seed, t, m, batch_size=config.batch_size)
            for m in cohort
        ]
        with torch.inference_mode():
            smashed = [
                torch.cat(
                    [
                        functional_call(client_model, spec.views(theta), (part,))
                        for part in torch.split(x, config.micro_batch or len(x))
                    ]
                )
                for x, _ in data
            ]
        uploads = [
            config.released_smashed_data(z_m, t, m, 0, has_mask=model.has_mask)
            for m, z_m in zip(cohort, smashed, strict=True)
        ]
        num_samples = sum(len(y) for _, y in data)
        weights = [len(y) / num_samples for _, y in data]

        # 4. The server takes one step on the mean loss and returns each client's lambda.
        if not config.server_optimizer.outlives_round:
            server_optimizer = build_optimizer(config.server_optimizer, server_model.parameters())
            assert server_optimizer is not None
        z = join(uploads).detach().clone().requires_grad_(True)
        sizes = [len(y) for _, y in data]
        with torch_seeded(server_dropout_seed(config.root_seed, t)):
            outputs = torch.split(server_model(z), sizes)
            losses = [loss(o, y) for o, (_, y) in zip(outputs, data, strict=True)]
        mean_loss = torch.stack([w * v for w, v in zip(weights, losses, strict=True)]).sum()
        server_optimizer.zero_grad(set_to_none=True)
        mean_loss.backward()  # type: ignore[no-untyped-call]
        server_optimizer.step()
        assert z.grad is not None
        lambdas = [g / w for g, w in zip(part(z.grad, smashed), weights, strict=True)]
        if config.paper_code_scaling:
            lambdas = [w * g for w, g in zip(weights, lambdas, strict=True)]

        # 5. Each client probes every direction: v = <lambda, f_c(x; theta + mu u) - z>.
        scalars = []
        for m, (x, _), z_m, lambda_m in zip(cohort, data, smashed, lambdas, strict=True):
            v, size = [], config.micro_batch or len(x)
            parts = [slice(first, first + size) for first in range(0, len(x), size)]
            for u in directions:
                above = below = 0.0
                for i in parts:
                    with torch.inference_mode():
                        plus = functional_call(client_model, spec.views(theta + u * mu), (x[i],))
                        above += float64_inner_product(lambda_m[i], plus)
                        if zo.estimator == "central":
                            at = spec.views(theta - u * mu)
                            minus = functional_call(client_model, at, (x[i],))
                            below += float64_inner_product(lambda_m[i], minus)
                if zo.estimator == "forward":
                    below = float64_inner_product(lambda_m, z_m)
                v.append(above - below)
            uploaded = torch.tensor(v, dtype=torch.float32)  # what crosses the wire
            scalars.append(config.released_scalars(uploaded, t, m))

        # 6. The server averages the scalars over the cohort.
        mean = aggregate_scalars(scalars, weights, config.robust)

        # 7. Every client rebuilds the same gradient and takes the same optimizer step.
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
