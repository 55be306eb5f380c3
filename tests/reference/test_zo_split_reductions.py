"""MU-SplitFed and ZO-SFL where they must equal something simpler."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from leansplit.federated import (
    MUSplitFedConfig,
    OptimizerConfig,
    ZOSFLConfig,
    build_optimizer,
    take_batch,
)
from leansplit.models import split_at
from leansplit.noise import draw_perturbation, perturbation_seeds, server_perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.reference import mu_splitfed, zo_sfl
from leansplit.tasks import Examples
from leansplit.zeroth_order import (
    SumObjective,
    ZerothOrderConfig,
    estimate,
    forward_only,
    probe,
)

ROUNDS, STEPS, BATCH, SEED = 3, 2, 8, 11
OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.1),
    "momentum": OptimizerConfig(lr=0.05, momentum=0.9, lifetime="run"),
    "adamw": OptimizerConfig(name="adamw", lr=0.02, lifetime="run"),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
PROBE = ZerothOrderConfig(num_perturbations=2, perturbation_scale=1e-2, estimator="central")


def network(frozen_from=5):
    """Layers 1 and 3 have parameters; those from ``frozen_from`` on are not trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.LogSoftmax(dim=1)
        )
    return model[:frozen_from].extend(model[frozen_from:].requires_grad_(False))


def client_only():
    """A model cut after layer 2, whose server has nothing to train."""
    model = split_at(network(), "2")
    model.server_model.requires_grad_(False)
    return model


def examples(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        Examples(
            torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)
        )
        for n in sizes
    ]


def settings(optimizer, **changes):
    return {
        "cohort_size": 1,
        "batch_size": BATCH,
        "root_seed": SEED,
        "local_steps": STEPS,
        "zeroth_order": PROBE,
        "client_optimizer": optimizer,
        "server_optimizer": optimizer,
    } | changes


def vector_of(model):
    parameters = trainable_parameters(model)
    return ParameterSpec.of(parameters).flatten(parameters)


def zeroth_order_training(data, optimizer_config, seeds_of, steps_a_batch=1, frozen_from=5):
    """Plain zeroth-order training of the unsplit model by the core's estimator alone."""
    model = network(frozen_from)
    spec = ParameterSpec.of(trainable_parameters(model))
    theta = vector_of(model)
    optimizer = build_optimizer(optimizer_config, [theta])
    for t in range(1, ROUNDS + 1):
        for h in range(STEPS):
            x, y = take_batch(data, SEED, t, 0, h, batch_size=BATCH)
            objective = SumObjective(
                lambda parameters, x=x, y=y: F.nll_loss(forward_only(model, parameters, x), y)
            )
            for s in range(steps_a_batch):
                seeds = seeds_of(t, h, s)
                differences = probe(objective, spec, theta, seeds, PROBE)
                theta.grad = estimate(spec, seeds, differences, PROBE, device="cpu")
                optimizer.step()
    return theta


@every_optimizer
@pytest.mark.parametrize("tau", [1, 3])
def test_with_nothing_to_train_at_the_server_both_are_zeroth_order_training(optimizer, tau):
    data = examples(30)
    plain = zeroth_order_training(
        data[0],
        optimizer,
        lambda t, h, s: perturbation_seeds(SEED, 2, round=t, client_id=0, local_step=h),
        frozen_from=3,
    )
    joint, unbalanced = client_only(), client_only()
    zo_sfl(joint, F.nll_loss, data, ZOSFLConfig(**settings(optimizer)), ROUNDS)
    config = MUSplitFedConfig(**settings(optimizer, tau=tau, global_lr=1.0))
    mu_splitfed(unbalanced, F.nll_loss, data, config, ROUNDS)
    assert torch.equal(vector_of(joint.full_model), plain)
    assert torch.equal(vector_of(unbalanced.full_model), plain)
    assert not torch.equal(vector_of(network(frozen_from=3)), plain)


@every_optimizer
@pytest.mark.parametrize("tau", [1, 3])
def test_with_nothing_to_train_at_the_client_the_server_takes_tau_steps_a_batch(optimizer, tau):
    data = examples(30)
    plain = zeroth_order_training(
        data[0],
        optimizer,
        lambda t, h, s: server_perturbation_seeds(
            SEED, 2, round=t, client_id=0, local_step=h, server_step=s
        ),
        steps_a_batch=tau,
    )
    model = split_at(network(), "0")
    config = MUSplitFedConfig(**settings(optimizer, tau=tau, global_lr=1.0))
    mu_splitfed(model, F.nll_loss, data, config, ROUNDS)
    assert torch.equal(vector_of(model.full_model), plain)
    if tau == 1:  # then it is ZO-SFL too
        joint = split_at(network(), "0")
        zo_sfl(joint, F.nll_loss, data, ZOSFLConfig(**settings(optimizer)), ROUNDS)
        assert torch.equal(vector_of(joint.full_model), plain)


def joint_move(num_perturbations, root_seed=SEED, estimator="central", mu=1e-3):
    """What one round of ZO-SFL moves theta by, and minus the true gradient, in one layout."""
    data = examples(16)
    model = split_at(network(), "2")
    whole = copy.deepcopy(model).full_model.double()
    x, y = take_batch(data[0], root_seed, 1, 0, batch_size=BATCH)
    F.nll_loss(whole(x.double()), y).backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    gradient = ParameterSpec.of(gradients).flatten(gradients)
    start = vector_of(model.full_model)
    zo = ZerothOrderConfig(
        num_perturbations=num_perturbations, perturbation_scale=mu, estimator=estimator
    )
    config = ZOSFLConfig(
        **settings(OptimizerConfig(lr=1.0), local_steps=1, zeroth_order=zo, root_seed=root_seed)
    )
    zo_sfl(model, F.nll_loss, data, config, 1)
    return (vector_of(model.full_model) - start).double(), -gradient


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_the_joint_estimate_points_the_closer_to_the_gradient_the_more_directions(estimator):
    cosines = []
    for count in (1, 16, 128, 1024):
        move, descent = joint_move(count, estimator=estimator)
        cosines.append(float(F.cosine_similarity(move, descent, dim=0)))
    assert cosines == sorted(cosines)
    # E[cosine] is about sqrt(P / (P + d + 1)) with d = 51.
    assert cosines[-1] > 0.95 and cosines[-2] > 0.75 and cosines[0] < 0.6


def test_the_joint_estimate_has_the_gradients_length_on_either_side_of_the_cut():
    move, descent = joint_move(2048)
    below = slice(0, 30)  # Linear(4, 6)
    above = slice(30, None)
    for part in (below, above):
        ratio = float(move[part] @ descent[part] / descent[part].square().sum())
        assert ratio == pytest.approx(1.0, abs=0.12)


def test_both_sides_of_a_joint_direction_are_independent():
    client = draw_perturbation(perturbation_seeds(0, 1, round=1, client_id=0, local_step=0)[0], 99)
    [seed] = server_perturbation_seeds(0, 1, round=1, client_id=0, local_step=0)
    assert abs(float(F.cosine_similarity(client, draw_perturbation(seed, 99), dim=0))) < 0.4


def mu_splitfeds_round(data, tau, global_lr, *, compares_before_the_server_steps=False):
    """One round of MU-SplitFed's algorithm written out, with SGD (arXiv 2510.21155)."""
    model, mu = split_at(network(), "2"), PROBE.perturbation_scale
    spec_c = ParameterSpec.of(trainable_parameters(model.client_model))
    spec_s = ParameterSpec.of(trainable_parameters(model.server_model))
    theta_c, theta_s = vector_of(model.client_model), vector_of(model.server_model)

    def smashed(c, x):
        return functional_call(model.client_model, spec_c.views(c), (x,))

    def loss(s, z, y):
        return F.nll_loss(functional_call(model.server_model, spec_s.views(s), (z,)), y)

    def directions(seeds, like):
        return [draw_perturbation(seed, len(like)) for seed in seeds]

    moves, sizes = [], []
    for m, samples in enumerate(data):
        c, s, seen = theta_c, theta_s, 0
        for k in range(STEPS):
            x, y = take_batch(samples, SEED, 1, m, k, batch_size=BATCH)
            at = {"round": 1, "client_id": m, "local_step": k}
            h, old_s = smashed(c, x), s
            for i in range(tau):
                v = directions(server_perturbation_seeds(SEED, 2, **at, server_step=i), s)
                rise = [loss(s + mu * v_p, h, y) - loss(s - mu * v_p, h, y) for v_p in v]
                s = s - 0.1 / (2 * 2 * mu) * sum(d * v_p for d, v_p in zip(rise, v, strict=True))
            u = directions(perturbation_seeds(SEED, 2, **at), c)
            judge = old_s if compares_before_the_server_steps else s
            rise = [
                loss(judge, smashed(c + mu * u_p, x), y) - loss(judge, smashed(c - mu * u_p, x), y)
                for u_p in u
            ]
            c = c - 0.05 / (2 * 2 * mu) * sum(d * u_p for d, u_p in zip(rise, u, strict=True))
            seen += len(y)
        moves.append(torch.cat([c - theta_c, s - theta_s]))
        sizes.append(seen)
    share = [size / sum(sizes) for size in sizes]
    return global_lr * sum(w * move for w, move in zip(share, moves, strict=True))


@torch.no_grad()
def test_mu_splitfed_takes_the_papers_steps_on_both_sides():
    """tau server steps on h, then the scalars at the server model that these steps left."""
    data, model = examples(30, 5), split_at(network(), "2")
    start = torch.cat([vector_of(model.client_model), vector_of(model.server_model)])
    rates = {
        "client_optimizer": OptimizerConfig(lr=0.05),
        "server_optimizer": OptimizerConfig(lr=0.1),
    }
    config = MUSplitFedConfig(
        **settings(OPTIMIZERS["sgd"], cohort_size=2, tau=3, global_lr=0.5) | rates
    )
    mu_splitfed(model, F.nll_loss, data, config, 1)
    moved = torch.cat([vector_of(model.client_model), vector_of(model.server_model)]) - start
    expected = mu_splitfeds_round(data, 3, 0.5)
    too_early = mu_splitfeds_round(data, 3, 0.5, compares_before_the_server_steps=True)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    assert (expected - too_early).abs().max() > 1e-3


@pytest.mark.parametrize("server_mode", ["averaged", "sequential"])
def test_the_global_rate_scales_the_first_rounds_move_of_both_halves(server_mode):
    data, moves = examples(30, 5, 20), {}
    for rate in (1.0, 0.25):
        model = split_at(network(), "2")
        start = vector_of(model.full_model)
        config = MUSplitFedConfig(
            **settings(OPTIMIZERS["sgd"], cohort_size=3, global_lr=rate, server_mode=server_mode)
        )
        mu_splitfed(model, F.nll_loss, data, config, 1)
        moves[rate] = vector_of(model.full_model) - start
    assert moves[1.0].abs().min() > 0
    torch.testing.assert_close(moves[0.25], 0.25 * moves[1.0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "config"), [(mu_splitfed, MUSplitFedConfig), (zo_sfl, ZOSFLConfig)]
)
def test_server_modes_agree_for_one_client_only(method, config):
    for sizes, is_equal in (((30,), True), ((30, 30), False)):
        results = []
        for server_mode in ("averaged", "sequential"):
            model = split_at(network(), "2")
            chosen = config(
                **settings(OPTIMIZERS["momentum"], cohort_size=len(sizes), server_mode=server_mode)
            )
            method(model, F.nll_loss, examples(*sizes), chosen, ROUNDS)
            results.append(vector_of(model.full_model))
        assert torch.equal(*results) is is_equal
