"""HOSL, DeComFL and FedZO where they must equal another method, or an oracle written out here."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from leansplit.federated import (
    DeComFLConfig,
    FedAvgConfig,
    FedZOConfig,
    HOSFLConfig,
    HOSLConfig,
    OptimizerConfig,
    take_batch,
)
from leansplit.models import split_at
from leansplit.noise import draw_perturbation, local_perturbation_seeds, perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.reference import decomfl, fedavg, fedzo, ho_sfl, hosl
from leansplit.tasks import Examples
from leansplit.zeroth_order import ZerothOrderConfig

BATCH, SEED, LR = 8, 11, 0.05
SGD = OptimizerConfig(lr=LR)


def split():
    """A small smooth network; 4 inputs, 3 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    return split_at(nn.Sequential(*layers), "1")


def clients(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        Examples(
            torch.randn(n, 4, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in sizes
    ]


def zo(**changes):
    defaults = {"num_perturbations": 4, "perturbation_scale": 1e-2, "estimator": "central"}
    return ZerothOrderConfig(**defaults | changes)


def shared(cohort_size, **changes):
    return {
        "cohort_size": cohort_size,
        "batch_size": BATCH,
        "root_seed": SEED,
        "client_optimizer": SGD,
        "zeroth_order": zo(),
    } | changes


def vector(module):
    parameters = trainable_parameters(module)
    return ParameterSpec.of(parameters).flatten(parameters)


def moved(method, config, data, rounds=1, part="full_model"):
    """Return how far ``method`` carries the parameters of a part of the model."""
    model = split()
    start = vector(getattr(model, part))
    method(model, F.cross_entropy, data, config, rounds)
    return vector(getattr(model, part)) - start


def cosine(a, b):
    return float(F.cosine_similarity(a.double(), b.double(), dim=0))


# --- HOSL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("sizes", [(30,), (30, 5, 20)])
def test_hosl_with_a_frozen_server_estimates_the_gradient_of_ho_sfl(estimator, sizes):
    """Same seeds, same batches: the surrogate and the loss have the same derivatives."""
    data = clients(*sizes)
    frozen = OptimizerConfig(lr=1e-30)
    probes = zo(estimator=estimator, perturbation_scale=1e-3)
    options = shared(len(sizes), zeroth_order=probes, server_optimizer=frozen)
    ours = moved(hosl, HOSLConfig(**options), data, part="client_model")
    theirs = moved(ho_sfl, HOSFLConfig(**options), data, part="client_model")
    assert cosine(ours, theirs) > 0.9995
    torch.testing.assert_close(ours.norm(), theirs.norm(), rtol=0.02, atol=0)
    assert not moved(hosl, HOSLConfig(**options), data, part="server_model").any()


def test_hosl_approaches_ho_sfl_as_mu_shrinks():
    data = clients(30)
    gaps = []
    for mu in (0.3, 0.1, 0.03):
        options = shared(1, zeroth_order=zo(perturbation_scale=mu, estimator="forward"))
        ours = moved(hosl, HOSLConfig(**options), data, part="client_model")
        theirs = moved(ho_sfl, HOSFLConfig(**options), data, part="client_model")
        gaps.append(float((ours - theirs).norm()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_hosl_probes_before_the_server_is_updated():
    """The clients' step does not depend on the step that the server takes in the same round."""
    data, steps = clients(30, 12), []
    for rate in (1e-30, 0.1, 10.0):
        config = HOSLConfig(**shared(2, server_optimizer=OptimizerConfig(lr=rate)))
        steps.append(moved(hosl, config, data, part="client_model"))
        second = moved(hosl, config, data, rounds=2, part="client_model")
        assert not torch.equal(second, steps[-1])
    assert torch.equal(steps[0], steps[1]) and torch.equal(steps[1], steps[2])


# --- DeComFL ------------------------------------------------------------------------------------


def mezo(data, steps):
    """MeZO's step (arXiv 2305.17333), plain SGD, on copies: seed -> projected gradient -> step.

    ``steps`` names the batches and directions: (round, local step).
    """
    model = split().full_model
    spec = ParameterSpec.of(trainable_parameters(model))
    theta = vector(model)
    for t, h in steps:
        x, y = take_batch(data, SEED, t, 0, h, batch_size=BATCH)
        step = torch.zeros_like(theta)
        for seed in perturbation_seeds(SEED, 4, round=t, local_step=h):
            z = draw_perturbation(seed, len(theta))
            with torch.no_grad():
                plus = F.cross_entropy(functional_call(model, spec.views(theta + 1e-2 * z), x), y)
                minus = F.cross_entropy(functional_call(model, spec.views(theta - 1e-2 * z), x), y)
            step += (plus - minus) / 2e-2 * z / 4
        theta = theta - LR * step
    return theta


@pytest.mark.parametrize("local_steps", [1, 3])
def test_decomfl_with_one_client_is_mezo(local_steps):
    """With h local steps, h of MeZO's: the client's own path is the shared one."""
    data = clients(30)
    config = DeComFLConfig(**shared(1, local_steps=local_steps))
    model = split()
    start = vector(model.full_model)
    decomfl(model, F.cross_entropy, data, config, 4)
    expected = mezo(data[0], [(t, h) for t in range(1, 5) for h in range(local_steps)])
    assert (expected - start).norm() > 0.1
    torch.testing.assert_close(vector(model.full_model), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "config_type", "part"),
    [(decomfl, DeComFLConfig, "full_model"), (hosl, HOSLConfig, "client_model")],
)
def test_a_cohort_estimates_the_gradient_of_its_mean_loss(method, config_type, part):
    """Averaging scalars of shared directions is probing the sample-weighted mean loss."""
    data = clients(30, 5, 20)
    step = moved(method, config_type(**shared(3)), data, part=part)
    model = split()
    whole, trained = model.full_model, getattr(model, part)
    batches = [take_batch(data[m], SEED, 1, m, batch_size=BATCH) for m in range(3)]
    x, y = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    spec, theta = ParameterSpec.of(trainable_parameters(trained)), vector(trained)
    local_step = {"local_step": 0} if part == "full_model" else {}
    expected = torch.zeros_like(theta)
    for seed in perturbation_seeds(SEED, 4, round=1, **local_step):
        u = draw_perturbation(seed, len(theta))
        losses = []
        for point in (theta + 1e-2 * u, theta - 1e-2 * u):
            with torch.no_grad():
                losses.append(F.cross_entropy(functional_call(whole, spec.views(point), x), y))
        expected -= LR * (losses[0] - losses[1]) / 2e-2 * u / 4
    torch.testing.assert_close(step, expected, rtol=0, atol=2e-5)


def test_decomfl_drops_the_local_path_but_keeps_its_scalars():
    """Two clients, two steps: the second scalars were measured where no replica ever is."""
    data = clients(30, 30)
    one, two = (DeComFLConfig(**shared(2, local_steps=h)) for h in (1, 2))
    first, both = moved(decomfl, one, data), moved(decomfl, two, data)
    u = [
        draw_perturbation(s, len(first)) for s in perturbation_seeds(SEED, 4, round=1, local_step=1)
    ]
    second = torch.linalg.lstsq(torch.stack(u).T.double(), (both - first).double()[:, None])
    rebuilt = torch.stack(u).T.double() @ second.solution[:, 0]
    assert (both - first).norm() > 1e-3
    torch.testing.assert_close(rebuilt, (both - first).double(), rtol=0, atol=1e-6)


# --- FedZO --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["sphere", "gaussian"])
def test_fedzo_with_many_directions_approaches_fedavg(direction):
    data = clients(30, 5, 20)
    first_order = FedAvgConfig(
        cohort_size=3, batch_size=BATCH, root_seed=SEED, client_optimizer=SGD, local_steps=1
    )
    wanted = moved(fedavg, first_order, data)
    errors = []
    for count in (20, 600):
        probes = zo(num_perturbations=count, direction=direction)
        config = FedZOConfig(**shared(3, zeroth_order=probes, local_steps=1))
        errors.append(float((moved(fedzo, config, data) - wanted).norm() / wanted.norm()))
    assert errors[1] < 0.35  # about sqrt(d / (3 P)) for three clients with directions of their own
    assert errors[1] < errors[0] / 3


def test_fedzo_clients_draw_directions_of_their_own():
    """Two clients with the same data and batch would move alike if they shared directions."""
    data = clients(BATCH) * 2
    config = FedZOConfig(**shared(2, zeroth_order=zo(num_perturbations=1), local_steps=1))
    step = moved(fedzo, config, data)
    spans = []
    for m in range(2):
        [seed] = local_perturbation_seeds(SEED, 1, round=1, client_id=m, local_step=0)
        spans.append(draw_perturbation(seed, len(step)))
    solved = torch.linalg.lstsq(torch.stack(spans).T, step[:, None]).solution[:, 0]
    assert (solved.abs() > 1e-4).all()
    torch.testing.assert_close(torch.stack(spans).T @ solved, step, rtol=0, atol=1e-6)


def test_fedzo_with_one_client_goes_on_where_its_last_round_ended():
    data = clients(30)
    whole = moved(fedzo, FedZOConfig(**shared(1, local_steps=2)), data, rounds=3)
    model = split()
    start = vector(model.full_model)
    spec = ParameterSpec.of(trainable_parameters(model.full_model))
    theta = copy.deepcopy(start)
    for t in range(1, 4):
        for h in range(2):
            x, y = take_batch(data[0], SEED, t, 0, h, batch_size=BATCH)
            step = torch.zeros_like(theta)
            for seed in local_perturbation_seeds(SEED, 4, round=t, client_id=0, local_step=h):
                u = draw_perturbation(seed, len(theta))
                values = [
                    F.cross_entropy(functional_call(model.full_model, spec.views(point), x), y)
                    for point in (theta + 1e-2 * u, theta - 1e-2 * u)
                ]
                step += float(values[0] - values[1]) / 2e-2 * u / 4
            theta = theta - LR * step
    assert (theta - start).norm() > 0.05
    torch.testing.assert_close(start + whole, theta, rtol=0, atol=1e-4)
