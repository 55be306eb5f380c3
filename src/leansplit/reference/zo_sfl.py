"""ZO-SFL as one plain loop (a baseline of arXiv 2603.14773): documentation and oracle.

Client and server model are perturbed together, and both step from one difference of the
end-to-end losses: a zeroth-order step on theta = (theta_c, theta_s), split at the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    TrainedVector,
    ZOSFLConfig,
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
def zo_sfl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: ZOSFLConfig,
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

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        # 1. Each client downloads theta_c; the server starts a replica for it, or one model that
        # serves the clients in turn.
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
        for h in range(config.local_steps):
            for m in service_order(seed, t, cohort):
                c, s = theta_c[m], theta_s[m]
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                num_samples[m] += len(y)
                mask = server_dropout_seed(seed, t, m, h)
                g_c, g_s = torch.zeros_like(c.vector), torch.zeros_like(s.vector)
                upload = partial(
                    config.released_smashed_data,
                    round=t,
                    client_id=m,
                    upload=h,
                    has_mask=model.has_mask,
                )
                for p, (seed_c, seed_s) in enumerate(
                    zip(
                        perturbation_seeds(seed, P, round=t, client_id=m, local_step=h),
                        server_perturbation_seeds(seed, P, round=t, client_id=m, local_step=h),
                        strict=True,
                    )
                ):
                    # 2. Both sides move along a direction and back; z+ and z- go up.
                    u_c, u_s = (
                        draw_perturbation(
                            one, len(at.vector), direction=zo.direction, device=at.vector.device
                        )
                        for one, at in ((seed_c, c), (seed_s, s))
                    )
                    z = upload(f_c(c.vector + u_c * mu, x), probe=p)
                    plus = loss_at(s.vector + u_s * mu, z, y, mask)
                    if is_central:
                        z = upload(f_c(c.vector - u_c * mu, x), probe=P + p)
                        minus = loss_at(s.vector - u_s * mu, z, y, mask)
                    else:
                        minus = loss_at(s.vector, upload(f_c(c.vector, x)), y, mask)
                    # 3. One scalar comes down; both sides use it.
                    v = float(plus - minus) / ((2.0 if is_central else 1.0) * P * mu)
                    g_c += u_c * (second_moment_inverse(zo.direction, spec_c.num_elements) * v)
                    g_s += u_s * (second_moment_inverse(zo.direction, spec_s.num_elements) * v)
                c.step_(g_c)
                s.step_(g_s)

        # 4. Both halves are averaged.
        weights = sample_weights([num_samples[m] for m in cohort])
        trained, start = [theta_c[m].parameters for m in cohort], trainable_parameters(client_model)
        load_parameters_(client_model, aggregate(trained, weights, start, config.robust))
        replicas, shares = [theta_s[m] for m in cohort], weights
        if config.server_mode == "sequential":
            replicas, shares = [shared], [1.0]
        trained, start = [r.parameters for r in replicas], trainable_parameters(server_model)
        load_parameters_(server_model, aggregate(trained, shares, start, config.server_robust))
        client_moments |= {m: theta_c[m].moments for m in cohort}
        if config.server_optimizer.outlives_round:
            server_moments = weighted_mean([replica.moments for replica in replicas], shares)
