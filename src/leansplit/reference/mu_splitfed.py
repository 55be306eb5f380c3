"""MU-SplitFed as one plain loop (arXiv 2510.21155, NeurIPS 2025): documentation and oracle.

Both halves are trained by zeroth-order steps, tau of the server's for each of the client's, and
move by eta_g towards the mean of the cohort's models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    MUSplitFedConfig,
    TrainedVector,
    aggregate,
    sample_weights,
    service_order,
    take_batch,
    weighted_mean,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import (
    draw_perturbation,
    perturbation_seeds,
    second_moment_inverse,
    server_dropout_seed,
    server_perturbation_seeds,
    torch_seeded,
)
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, cohorts, go_on


@torch.no_grad()
def mu_splitfed(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: MUSplitFedConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    seed, zo = config.root_seed, config.zeroth_order
    P, mu, is_central = zo.num_perturbations, zo.perturbation_scale, zo.estimator == "central"
    client_model, server_model = model.client_model.eval(), model.server_model.train()
    spec_c = ParameterSpec.of(trainable_parameters(client_model))
    spec_s = ParameterSpec.of(trainable_parameters(server_model))
    client_moments: dict[int, dict[str, Tensor]] = {}
    server_moments: dict[str, Tensor] = {}

    def f_c(theta: Tensor, x: Tensor) -> Tensor:
        z: Tensor = functional_call(client_model, spec_c.views(theta), (x,))
        return z

    def loss_at(theta: Tensor, z: Tensor, y: Tensor, mask: int) -> Tensor:
        with torch_seeded(mask):
            return loss(functional_call(server_model, spec_s.views(theta), (z,)), y)

    def draw(seeds: Sequence[int], like: Tensor) -> list[Tensor]:
        return [
            draw_perturbation(s, len(like), direction=zo.direction, device=like.device)
            for s in seeds
        ]

    def estimate(deltas: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
        gradient = torch.zeros_like(directions[0])
        factor = second_moment_inverse(zo.direction, len(gradient))
        for delta, u in zip(deltas, directions, strict=True):
            gradient += u * (factor * (float(delta) / ((2.0 if is_central else 1.0) * P * mu)))
        return gradient

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        # 1. Each sampled client pulls theta_c; the server starts a replica theta_{s,m}, or one
        # model that serves the clients in turn.
        start_c, start_s = trainable_parameters(client_model), trainable_parameters(server_model)
        theta_c = {
            m: TrainedVector(
                start_c,
                config.client_optimizer,
                client_moments.get(m) if config.client_optimizer.outlives_round else None,
            )
            for m in cohort
        }
        shared = TrainedVector(start_s, config.server_optimizer, server_moments)
        theta_s = {
            m: shared
            if config.server_mode == "sequential"
            else TrainedVector(start_s, config.server_optimizer, server_moments)
            for m in cohort
        }
        num_samples = dict.fromkeys(cohort, 0)
        for k in range(config.local_steps):
            for m in service_order(seed, t, cohort):
                c, s = theta_c[m], theta_s[m]
                x, y = take_batch(clients[m], seed, t, m, k, batch_size=config.batch_size)
                num_samples[m] += len(y)

                # 2. The client uploads h, h+ and h-.
                u = draw(
                    perturbation_seeds(seed, P, round=t, client_id=m, local_step=k),
                    c.vector,
                )
                upload = partial(
                    config.released_smashed_data,
                    round=t,
                    client_id=m,
                    upload=k,
                    has_mask=model.has_mask,
                )
                h = upload(f_c(c.vector, x))
                h_plus = [upload(f_c(c.vector + u[p] * mu, x), probe=p) for p in range(P)]
                h_minus = [
                    upload(f_c(c.vector - u[p] * mu, x), probe=P + p) if is_central else h
                    for p in range(P)
                ]

                # 3. tau server steps, all on h.
                for i in range(config.tau):
                    seeds = server_perturbation_seeds(
                        seed, P, round=t, client_id=m, local_step=k, server_step=i
                    )
                    mask = server_dropout_seed(seed, t, m, k, i)
                    v = draw(seeds, s.vector)
                    deltas = [
                        loss_at(s.vector + v_p * mu, h, y, mask)
                        - loss_at(s.vector - v_p * mu if is_central else s.vector, h, y, mask)
                        for v_p in v
                    ]
                    s.step_(estimate(deltas, v))

                # 4. The updated replica compares h+ and h-; P scalars go down.
                mask = server_dropout_seed(seed, t, m, k, config.tau)
                deltas = [
                    loss_at(s.vector, plus, y, mask) - loss_at(s.vector, minus, y, mask)
                    for plus, minus in zip(h_plus, h_minus, strict=True)
                ]

                # 5. The client steps.
                c.step_(estimate(deltas, u))

        # 6. Both halves move by eta_g towards the mean.
        weights = sample_weights([num_samples[m] for m in cohort])
        trained_c = [theta_c[m].parameters for m in cohort]
        moved = aggregate(trained_c, weights, start_c, config.robust, config.global_lr)
        load_parameters_(client_model, moved)
        replicas, shares = [theta_s[m] for m in cohort], weights
        if config.server_mode == "sequential":
            replicas, shares = [shared], [1.0]
        trained_s = [replica.parameters for replica in replicas]
        moved = aggregate(trained_s, shares, start_s, config.server_robust, config.global_lr)
        load_parameters_(server_model, moved)
        client_moments |= {m: theta_c[m].moments for m in cohort}
        if config.server_optimizer.outlives_round:
            server_moments = weighted_mean([replica.moments for replica in replicas], shares)
