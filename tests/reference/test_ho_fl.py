"""HO-FL's special cases: FedAvg, zeroth-order federated learning, and what lies between."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from leansplit.federated import (
    FedAvgConfig,
    HOFLConfig,
    OptimizerConfig,
    build_optimizer,
    sample_by_dimension,
    sample_cohort,
    sample_weights,
    take_batch,
    weighted_mean,
)
from leansplit.models import split_at
from leansplit.noise import draw_perturbation, perturbation_seeds
from leansplit.parameters import ParameterSpec, load_parameters_, trainable_parameters
from leansplit.reference import fedavg, ho_fl
from leansplit.tasks import Examples
from leansplit.zeroth_order import ZerothOrderConfig

OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.2, lifetime="round"),
    "momentum": OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.01, lifetime="run"),
    "adamw": OptimizerConfig(name="adamw", lr=0.02, weight_decay=0.1, lifetime="round"),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
ROUNDS, STEPS, BATCH, SEED = 4, 3, 8, 11


def split(cut_layer="1"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        return split_at(nn.Sequential(*layers), cut_layer)


def clients(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        Examples(
            torch.randn(n, 4, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in sizes
    ]


def config(cohort_size, optimizer, **changes):
    return HOFLConfig(
        **{
            "cohort_size": cohort_size,
            "batch_size": BATCH,
            "root_seed": SEED,
            "local_steps": STEPS,
            "client_optimizer": optimizer,
            "dimension_preference": 0.0,
        }
        | changes
    )


def trained(settings, data, rounds=ROUNDS, cut_layer="1"):
    model = split(cut_layer)
    ho_fl(model, F.cross_entropy, data, settings, rounds)
    return model.full_state_dict()


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def fedavg_trained(data, optimizer, cohort_size):
    model = split()
    settings = FedAvgConfig(
        cohort_size=cohort_size, batch_size=BATCH, root_seed=SEED, local_steps=STEPS,
        client_optimizer=optimizer,
    )  # fmt: skip
    fedavg(model, F.cross_entropy, data, settings, ROUNDS)
    return model.full_state_dict()


@every_optimizer
def test_without_a_zeroth_order_segment_it_is_fedavg(optimizer):
    """Alone bit for bit; with others up to the average, float32 in Flower's and float64 here."""
    alone = clients(30)
    settings = config(1, optimizer, boundaries=("none",))
    assert_same_bits(trained(settings, alone), fedavg_trained(alone, optimizer, 1))
    everyone = clients(20, 3, 30)  # full attendance: the two draw different cohorts
    settings = config(3, optimizer, boundaries=("none",))
    torch.testing.assert_close(
        trained(settings, everyone), fedavg_trained(everyone, optimizer, 3), rtol=1e-4, atol=1e-6
    )


def zeroth_order_fl(data, settings):
    """Federated learning by zeroth-order steps on the loss, with seeds of every client's own."""
    model, zo = split().full_model.eval(), settings.zeroth_order
    initial = trainable_parameters(model)
    spec = ParameterSpec.of(initial)
    w, moments = spec.flatten(initial), {}
    for t in range(1, ROUNDS + 1):
        states, sizes = [], []
        for i in range(len(data)):
            theta = w.clone()
            optimizer = build_optimizer(settings.client_optimizer, [theta])
            if settings.client_optimizer.lifetime == "run" and i in moments:
                optimizer.load_state_dict(moments[i])
            sizes.append(0)
            for h in range(STEPS):
                x, y = take_batch(data[i], SEED, t, i, h, batch_size=BATCH)
                sizes[-1] += len(y)
                gradient = torch.zeros_like(theta)
                seeds = perturbation_seeds(
                    SEED, zo.num_perturbations, round=t, client_id=i, local_step=h
                )
                for seed in seeds:
                    u = draw_perturbation(seed, len(theta))
                    with torch.no_grad():
                        plus, here = (
                            F.cross_entropy(functional_call(model, spec.views(v), (x,)), y)
                            for v in (theta + u * zo.perturbation_scale, theta)
                        )
                    v = float(plus - here)
                    gradient += u * (v / (len(seeds) * zo.perturbation_scale))
                theta.grad = gradient
                optimizer.step()
            moments[i] = optimizer.state_dict()
            states.append({"w": theta})
        w = weighted_mean(states, sample_weights(sizes))["w"]
    load_parameters_(model, spec.views(w))
    return model.state_dict()


@every_optimizer
def test_with_everything_zeroth_order_it_is_zeroth_order_federated_learning(optimizer):
    data = clients(20, 3, 30)
    zo = ZerothOrderConfig(num_perturbations=3, perturbation_scale=1e-2)
    settings = config(3, optimizer, boundaries=("all",), zeroth_order=zo)
    assert_same_bits(trained(settings, data), zeroth_order_fl(data, settings))


def test_the_boundary_cut_is_the_cut_layer():
    data, optimizer = clients(20, 9), OPTIMIZERS["sgd"]
    by_name = trained(config(2, optimizer, boundaries=("2",)), data)
    assert_same_bits(
        trained(config(2, optimizer, boundaries=("cut",)), data, cut_layer="2"), by_name
    )
    other = trained(config(2, optimizer, boundaries=("cut",)), data)
    assert not torch.equal(other["0.weight"], by_name["0.weight"])


def test_both_segments_step_from_the_same_anchor():
    """A linear lower segment: the analytic directional derivative at any mu, at the weights of the
    round, however far the upper segment steps."""
    data, rate = clients(30), 5.0
    zo = ZerothOrderConfig(num_perturbations=3, perturbation_scale=0.5)
    optimizer = OptimizerConfig(lr=rate, lifetime="round")
    settings = config(1, optimizer, boundaries=("0",), zeroth_order=zo, local_steps=1)
    plain = split().full_model.double()
    x, y = take_batch(data[0], SEED, 1, 0, 0, batch_size=BATCH)
    F.cross_entropy(plain(x.double()), y).backward()
    start = {name: value.detach() for name, value in plain.named_parameters()}
    gradient = {name: parameter.grad for name, parameter in plain.named_parameters()}
    lower = {name: gradient[name] for name in start if name.startswith("0.")}
    spec = ParameterSpec.of(lower)
    g = spec.flatten(lower).double()
    seeds = perturbation_seeds(SEED, 3, round=1, client_id=0, local_step=0)
    u = torch.stack([draw_perturbation(seed, len(g)).double() for seed in seeds])
    steps = gradient | dict(spec.views(((u @ g)[:, None] * u).mean(0)))
    assert all(step.norm() > 1e-2 for step in steps.values())
    ended = trained(settings, data, rounds=1)
    for name, step in steps.items():
        torch.testing.assert_close(
            ended[name].double(), start[name] - rate * step, rtol=0, atol=1e-4
        )


def test_many_directions_approach_fedavg():
    """With enough directions and a small mu the zeroth-order segment moves as backpropagation."""
    data, optimizer = clients(30, 20), OPTIMIZERS["sgd"]
    zo = ZerothOrderConfig(num_perturbations=800, perturbation_scale=1e-2)
    settings = config(2, optimizer, boundaries=("2",), zeroth_order=zo)
    start = split().full_state_dict()
    ours = trained(settings, data, rounds=1)
    exact = trained(dataclasses.replace(settings, boundaries=("none",)), data, rounds=1)
    moved, target = (
        torch.cat([(state[k] - start[k]).reshape(-1) for k in start]) for state in (ours, exact)
    )
    assert F.cosine_similarity(moved, target, dim=0) > 0.97


def test_uniform_sampling_draws_cohorts_as_the_others_do_in_distribution():
    """Not the same cohorts: dependent rounding and a shuffle are different draws."""
    sizes = dict.fromkeys(range(10), 5)
    ours = [sample_by_dimension(sizes, 3, 0.0, SEED, t) for t in range(1, 2001)]
    theirs = [sample_cohort(SEED, t, range(10), 3) for t in range(1, 2001)]
    for m in range(10):
        chances = [sum(m in cohort for cohort in drawn) / 2000 for drawn in (ours, theirs)]
        assert chances == pytest.approx([0.3, 0.3], abs=0.045)


def test_it_learns_only_from_its_cohort():
    data = clients(16, 16, 16, 16)
    settings = config(1, OPTIMIZERS["sgd"])
    results = []
    for away in range(4):
        changed = list(data)
        changed[away] = clients(5)[0]
        results.append(trained(settings, changed, rounds=1)["0.weight"])
    plain = trained(settings, data, rounds=1)["0.weight"]
    assert [torch.equal(result, plain) for result in results].count(True) == 3


def test_a_reference_run_is_deterministic_and_depends_on_its_root_seed():
    data, settings = clients(30, 12, 20), config(2, OPTIMIZERS["adamw"])
    before = torch.get_rng_state()
    first = trained(settings, data, rounds=2)
    assert_same_bits(first, trained(settings, data, rounds=2))
    other = trained(dataclasses.replace(settings, root_seed=SEED + 1), data, rounds=2)
    assert not torch.equal(first["4.weight"], other["4.weight"])
    assert torch.equal(torch.get_rng_state(), before)
