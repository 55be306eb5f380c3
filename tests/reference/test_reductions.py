"""Special cases in which a method must equal another one, or plain training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.federated import (
    FedAvgConfig,
    FrozenConfig,
    HOSFLConfig,
    OptimizerConfig,
    SplitFedConfig,
    build_optimizer,
    sample_cohort,
    take_batch,
)
from leansplit.models import split_at
from leansplit.noise import draw_perturbation, perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.reference import fedavg, frozen, ho_sfl, splitfed_v1, splitfed_v2
from leansplit.tasks import Examples
from leansplit.zeroth_order import ZerothOrderConfig

OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.2),
    "momentum": OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.01, lifetime="run"),
    "adamw": OptimizerConfig(name="adamw", lr=0.02, weight_decay=0.1, lifetime="run"),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
ROUNDS, STEPS, BATCH, SEED = 4, 3, 8, 11


def network():
    """A small network without random or batch-coupled layers; 4 inputs, 3 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        )


def split(cut_layer="1"):
    return split_at(network(), cut_layer)


def clients(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        Examples(
            torch.randn(n, 4, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in sizes
    ]


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def trained_plainly(optimizer_config, data):
    """The unsplit model, torch.optim, and the same batches."""
    model = network()
    optimizer = build_optimizer(optimizer_config, model.parameters())
    for t in range(1, ROUNDS + 1):
        for h in range(STEPS):
            x, y = take_batch(data, SEED, t, 0, h, batch_size=BATCH)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return bits(model)


def splitfed_config(optimizer, **changes):
    return SplitFedConfig(
        **{
            "cohort_size": 1,
            "batch_size": BATCH,
            "root_seed": SEED,
            "local_steps": STEPS,
            "client_optimizer": optimizer,
            "server_optimizer": optimizer,
        }
        | changes
    )


# --- one client ---------------------------------------------------------------------------------


@every_optimizer
def test_one_client_of_any_first_order_method_is_plain_training(optimizer):
    data = clients(30)
    plain = trained_plainly(optimizer, data[0])
    assert any(not torch.equal(value, plain[name]) for name, value in bits(network()).items())
    for method in (splitfed_v1, splitfed_v2):
        for order in ("interleaved", "sequential"):
            for cut_layer in ("0", "1", "2"):
                model = split(cut_layer)
                config = splitfed_config(optimizer, client_order=order)
                method(model, F.cross_entropy, data, config, ROUNDS)
                assert_same_bits(model.full_state_dict(), plain)
    whole = split()
    config = FedAvgConfig(
        cohort_size=1, batch_size=BATCH, root_seed=SEED, local_steps=STEPS,
        client_optimizer=optimizer,
    )  # fmt: skip
    fedavg(whole, F.cross_entropy, data, config, ROUNDS)
    assert_same_bits(whole.full_state_dict(), plain)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_the_reductions_would_notice_lost_moments(name):
    forgetful = copy.copy(OPTIMIZERS[name])
    object.__setattr__(forgetful, "lifetime", "round")
    data = clients(30)
    plain = trained_plainly(OPTIMIZERS[name], data[0])
    for method in (splitfed_v1, splitfed_v2):
        for changes in ({"client_optimizer": forgetful}, {"server_optimizer": forgetful}):
            model = split()
            config = splitfed_config(OPTIMIZERS[name], **changes)
            method(model, F.cross_entropy, data, config, ROUNDS)
            assert any(not torch.equal(v, plain[k]) for k, v in model.full_state_dict().items())


def test_momentum_that_lives_for_a_batch_is_no_momentum():
    fresh = OptimizerConfig(lr=0.1, momentum=0.9, lifetime="batch")
    data = clients(30)
    plain = trained_plainly(OptimizerConfig(lr=0.1), data[0])
    for method in (splitfed_v1, splitfed_v2):
        model = split()
        method(model, F.cross_entropy, data, splitfed_config(fresh), ROUNDS)
        assert_same_bits(model.full_state_dict(), plain)
    whole = split()
    config = FedAvgConfig(
        cohort_size=1, batch_size=BATCH, root_seed=SEED, local_steps=STEPS, client_optimizer=fresh
    )
    fedavg(whole, F.cross_entropy, data, config, ROUNDS)
    assert_same_bits(whole.full_state_dict(), plain)


# --- several clients ----------------------------------------------------------------------------


def test_splitfed_v1_is_fedavg_when_every_half_is_averaged_alike():
    """Plain SGD: averaging the halves and averaging the whole are the same, up to rounding."""
    data = clients(20, 3, 30)  # one with less than a batch, so that shares differ
    v1, whole = split(), split()
    config = splitfed_config(OPTIMIZERS["sgd"], cohort_size=3)
    splitfed_v1(v1, F.cross_entropy, data, config, ROUNDS)
    config = FedAvgConfig(
        cohort_size=3, batch_size=BATCH, root_seed=SEED, local_steps=STEPS,
        client_optimizer=OPTIMIZERS["sgd"],
    )  # fmt: skip
    fedavg(whole, F.cross_entropy, data, config, ROUNDS)
    torch.testing.assert_close(v1.full_state_dict(), whole.full_state_dict(), rtol=1e-4, atol=1e-6)


def test_the_order_of_service_matters_to_the_second_version_only():
    data = clients(20, 9, 30)
    results = {}
    for method in (splitfed_v1, splitfed_v2):
        for order in ("interleaved", "sequential"):
            model = split()
            config = splitfed_config(OPTIMIZERS["sgd"], cohort_size=3, client_order=order)
            method(model, F.cross_entropy, data, config, ROUNDS)
            results[method, order] = model.full_state_dict()
    assert_same_bits(results[splitfed_v1, "interleaved"], results[splitfed_v1, "sequential"])
    name = "4.weight"
    assert not torch.equal(
        results[splitfed_v2, "interleaved"][name], results[splitfed_v2, "sequential"][name]
    )


# --- HO-SFL -------------------------------------------------------------------------------------


def ho_sfl_config(**changes):
    return HOSFLConfig(
        **{
            "cohort_size": 1,
            "batch_size": BATCH,
            "root_seed": SEED,
            "zeroth_order": ZerothOrderConfig(num_perturbations=4, perturbation_scale=1e-3),
            "client_optimizer": OptimizerConfig(lr=0.05),
            "server_optimizer": OptimizerConfig(lr=0.1),
        }
        | changes
    )


def client_gradient(model, cohort, data):
    """Backpropagation through both halves of the cohort's sample-weighted mean loss, float64."""
    model = copy.deepcopy(model)
    whole = model.full_model.double()
    batches = [take_batch(data[m], SEED, 1, m, batch_size=BATCH) for m in cohort]
    total = sum(len(y) for _, y in batches)
    loss = sum(len(y) / total * F.cross_entropy(whole(x.double()), y) for x, y in batches)
    loss.backward()
    gradients = {name: p.grad for name, p in model.client_model.named_parameters()}
    return ParameterSpec.of(gradients).flatten(gradients)


def client_vector(model):
    parameters = trainable_parameters(model.client_model)
    return ParameterSpec.of(parameters).flatten(parameters)


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("mu", [1e-2, 10.0])
@pytest.mark.parametrize("sizes", [(30,), (30, 5, 20)])
def test_a_linear_client_takes_the_analytic_directional_derivative_at_any_mu(estimator, mu, sizes):
    data = clients(*sizes)
    model = split("0")  # the client model is one linear layer, so <lambda, f_c> is linear
    start, gradient = client_vector(model), client_gradient(model, range(len(sizes)), data)
    zo = ZerothOrderConfig(num_perturbations=4, perturbation_scale=mu, estimator=estimator)
    ho_sfl(model, F.cross_entropy, data, ho_sfl_config(cohort_size=len(sizes), zeroth_order=zo), 1)
    directions = torch.stack(
        [
            draw_perturbation(seed, len(start)).double()
            for seed in perturbation_seeds(SEED, 4, round=1)
        ]
    )
    estimate = ((directions @ gradient)[:, None] * directions).mean(0)
    expected = start.double() - 0.05 * estimate
    assert estimate.norm() > 0.1
    torch.testing.assert_close(client_vector(model).double(), expected, rtol=0, atol=3e-5)


def test_the_servers_step_is_the_frozen_controls_in_the_first_round():
    data = clients(30, 12)
    ours, control = split(), split()
    ho_sfl(ours, F.cross_entropy, data, ho_sfl_config(cohort_size=2), 1)
    config = FrozenConfig(
        cohort_size=2, batch_size=BATCH, root_seed=SEED, server_optimizer=OptimizerConfig(lr=0.1)
    )
    frozen(control, F.cross_entropy, data, config, 1)
    assert_same_bits(bits(ours.server_model), bits(control.server_model))
    assert not torch.equal(client_vector(ours), client_vector(control))


@pytest.mark.parametrize("num_clients", [1, 2, 4])
def test_paper_code_scaling_shrinks_the_client_step_by_the_size_of_the_cohort(num_clients):
    data = clients(*[16] * num_clients)
    moved = {}
    for scaling in (False, True):
        model = split()
        start = client_vector(model)
        # A large mu, so that rounding does not hide in the scalars.
        zo = ZerothOrderConfig(num_perturbations=4, perturbation_scale=0.1)
        config = ho_sfl_config(cohort_size=num_clients, zeroth_order=zo, paper_code_scaling=scaling)
        ho_sfl(model, F.cross_entropy, data, config, 1)
        moved[scaling] = client_vector(model) - start
    assert moved[False].norm() > 1e-3
    torch.testing.assert_close(moved[True] * num_clients, moved[False], rtol=2e-3, atol=2e-6)


@every_optimizer
def test_frozen_trains_the_server_and_never_the_client(optimizer):
    model, data = split(), clients(30, 12, 3)
    client, server = bits(model.client_model), bits(model.server_model)
    config = FrozenConfig(
        cohort_size=2, batch_size=BATCH, root_seed=SEED, server_optimizer=optimizer
    )
    frozen(model, F.cross_entropy, data, config, ROUNDS)
    assert_same_bits(bits(model.client_model), client)
    assert all(parameter.grad is None for parameter in model.client_model.parameters())
    assert not torch.equal(model.server_model.state_dict()["4.weight"], server["4.weight"])


def test_frozen_is_plain_training_of_the_upper_layers():
    """The whole model with its lower layers frozen by hand; one client, SGD, same batches."""
    data = clients(30)
    plain = network()
    for parameter in plain[:2].parameters():
        parameter.requires_grad_(False)
    optimizer = build_optimizer(OPTIMIZERS["adamw"], plain[2:].parameters())
    for t in range(1, ROUNDS + 1):
        x, y = take_batch(data[0], SEED, t, 0, batch_size=BATCH)
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    model = split()
    config = FrozenConfig(
        cohort_size=1, batch_size=BATCH, root_seed=SEED, server_optimizer=OPTIMIZERS["adamw"]
    )
    frozen(model, F.cross_entropy, data, config, ROUNDS)
    assert_same_bits(model.full_state_dict(), bits(plain))


def test_every_method_learns_only_from_its_cohort():
    """Changing the data of a client that is never sampled changes nothing."""
    data = clients(16, 16, 16, 16)
    drawn = {m for t in range(1, 3) for m in sample_cohort(SEED, t, range(4), 1)}
    away = next(m for m in range(4) if m not in drawn)
    other = list(data)
    other[away] = clients(5)[0]
    for method, config in (
        (ho_sfl, ho_sfl_config()),
        (splitfed_v1, splitfed_config(OPTIMIZERS["sgd"])),
        (splitfed_v2, splitfed_config(OPTIMIZERS["sgd"])),
    ):
        models = split(), split()
        for model, population in zip(models, (data, other), strict=True):
            method(model, F.cross_entropy, population, config, 2)
        assert_same_bits(models[0].full_state_dict(), models[1].full_state_dict())


@pytest.mark.parametrize("method", ["ho-sfl", "v1", "v2", "fedavg", "frozen"])
def test_a_reference_run_is_deterministic_and_depends_on_its_root_seed(method):
    data = clients(30, 12, 20)

    def run(root_seed):
        model = split()
        if method == "ho-sfl":
            config = ho_sfl_config(cohort_size=2, root_seed=root_seed)
            ho_sfl(model, F.cross_entropy, data, config, 2)
        elif method == "frozen":
            config = FrozenConfig(cohort_size=2, batch_size=BATCH, root_seed=root_seed)
            frozen(model, F.cross_entropy, data, config, 2)
        elif method == "fedavg":
            config = FedAvgConfig(cohort_size=2, batch_size=BATCH, root_seed=root_seed)
            fedavg(model, F.cross_entropy, data, config, 2)
        else:
            config = splitfed_config(OPTIMIZERS["sgd"], cohort_size=2, root_seed=root_seed)
            {"v1": splitfed_v1, "v2": splitfed_v2}[method](model, F.cross_entropy, data, config, 2)
        return model.full_state_dict()

    before = torch.get_rng_state()
    first = run(1)
    assert_same_bits(first, run(1))
    assert not torch.equal(first["4.weight"], run(2)["4.weight"])
    assert torch.equal(torch.get_rng_state(), before)
