"""HO-FL as one plain loop: documentation and oracle.

Every client trains the whole model: below its boundary with forward passes against the gradient at
the boundary, above it with backpropagation that ends there. No layer below a boundary is ever
differentiated.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.federated import (
    ClientData,
    HOFLConfig,
    aggregate,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    sample_weights,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.hybrid_order import segments_at
from leansplit.models import SplitModel
from leansplit.noise import (
    client_dropout_seed,
    draw_perturbation,
    perturbation_seeds,
    second_moment_inverse,
    torch_seeded,
)
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters
from leansplit.reference.rounds import AfterRound, go_on, rounds
from leansplit.zeroth_order import float64_inner_product


def ho_fl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: HOFLConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> None:
    """Train ``model`` in place for ``num_rounds`` rounds; arguments as in :func:`ho_sfl`."""
    seed, zo = config.root_seed, config.zeroth_order
    mu, q = zo.perturbation_scale, zo.num_perturbations
    width = 1.0 if zo.estimator == "forward" else 2.0
    boundaries = config.boundaries_of(range(len(clients)))
    sizes = {b: segments_at(model, b).num_zeroth_elements for b in set(boundaries.values())}
    dimensions = {i: sizes[b] for i, b in boundaries.items()}
    sampled = partial(config.sample_by_dimension, zeroth_elements=dimensions)
    moments: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    for t, cohort in rounds(num_rounds, sampled, after_round):
        # 1. and 2. Sample exactly K clients, more often those with few zeroth-order parameters.
        states, num_samples = [], []
        for i in cohort:
            # 3. The client downloads the whole model and E q seeds of its own.
            local = copy.deepcopy(model)
            segments = segments_at(local, boundaries[i])
            bottom, top = segments.zeroth, segments.first
            lower = segments.zeroth_parameters
            spec = ParameterSpec.of(lower)
            theta = spec.flatten(lower)
            zo_optimizer = build_optimizer(config.client_optimizer, [theta] if bottom else [])
            fo_optimizer = build_optimizer(config.client_optimizer, top.parameters() if top else [])
            if config.client_optimizer.outlives_round:
                zo_moments, fo_moments = moments.get(i, ({}, {}))
                load_optimizer_state_(zo_optimizer, zo_moments)
                load_optimizer_state_(fo_optimizer, fo_moments)
            samples = 0
            for h in range(config.local_steps):
                x, y = take_batch(clients[i], seed, t, i, h, batch_size=config.batch_size)
                samples += len(y)
                # 4a. Bottom forward without a graph; top forward and backward, delta = dl/dz.
                z, delta = x, x
                if bottom:
                    with torch.inference_mode():
                        z = functional_call(bottom.eval(), spec.views(theta), (x,))
                if top:
                    z_top = z.clone().requires_grad_(True) if bottom else x
                    with torch_seeded(client_dropout_seed(seed, t, i, h)):
                        value = loss(top.train()(z_top), y)
                    top.zero_grad(set_to_none=True)
                    value.backward()  # type: ignore[no-untyped-call]
                    if bottom:
                        assert z_top.grad is not None
                        delta = z_top.grad
                # 4b. q probes around the same anchor; the difference of the loss itself if there
                # is no top.
                if bottom:
                    u = [
                        draw_perturbation(
                            s, spec.num_elements, direction=zo.direction, device=theta.device
                        )
                        for s in perturbation_seeds(seed, q, round=t, client_id=i, local_step=h)
                    ]
                    s_ij = []
                    with torch.inference_mode():
                        for u_j in u:
                            plus = functional_call(bottom, spec.views(theta + u_j * mu), (x,))
                            minus = z
                            if zo.estimator == "central":
                                minus = functional_call(bottom, spec.views(theta - u_j * mu), (x,))
                            if top:
                                above, below = (
                                    float64_inner_product(delta, end) for end in (plus, minus)
                                )
                            else:
                                above, below = (float(loss(end, y)) for end in (plus, minus))
                            s_ij.append(above - below)
                    s_ij = torch.tensor(s_ij, dtype=torch.float32).tolist()  # 5. what crosses
                    factor = second_moment_inverse(zo.direction, spec.num_elements)
                    gradient = torch.zeros_like(theta)
                    for u_j, s in zip(u, s_ij, strict=True):
                        gradient += u_j * (factor * (s / (width * q * mu)))
                    # 4c. Both segments step from the same anchor.
                    assert zo_optimizer is not None
                    theta.grad = gradient
                    zo_optimizer.step()
                if fo_optimizer is not None:
                    fo_optimizer.step()
            moments[i] = optimizer_state(zo_optimizer), optimizer_state(fo_optimizer)
            # 6. The server rebuilds theta from seeds and scalars, and joins the segments at b_i.
            states.append(segments.first_parameters | spec.views(theta))
            num_samples.append(samples)
        start, shares = trainable_parameters(model.full_model), sample_weights(num_samples)
        load_parameters_(model.full_model, aggregate(states, shares, start, config.robust))
