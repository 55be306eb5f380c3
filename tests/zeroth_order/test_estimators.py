import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from leansplit.errors import UserError
from leansplit.first_order import server_step
from leansplit.noise import (
    DIRECTIONS,
    draw_perturbation,
    perturbation_seeds,
    second_moment_inverse,
)
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import (
    ESTIMATORS,
    SumObjective,
    SurrogateObjective,
    ZerothOrderConfig,
    estimate,
    float64_inner_product,
    float64_sum,
    forward_only,
    probe,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeds(count, root=0):
    return perturbation_seeds(root, count, round=1)


def zo(**changes):
    return ZerothOrderConfig(**{"num_perturbations": 8, "perturbation_scale": 1e-3} | changes)


def estimate_at(objective, parameters, config, *, root=0, anchor=None):
    """Return (gradient estimate [d], v [P]) by the real path."""
    spec = ParameterSpec.of(parameters)
    drawn = seeds(config.num_perturbations, root)
    v = probe(objective, spec, spec.flatten(parameters), drawn, config, anchor=anchor)
    return estimate(spec, drawn, v, config, device="cpu"), v


# --- linear objectives: exact and unbiased ------------------------------------------------------

D = 12
PARAMETERS = {"a": normal(2, 3, seed=1), "b": normal(6, seed=2)}
GRADIENT = normal(D, seed=3)


def linear(parameters):
    """<g, theta>, kept as d summands."""
    return GRADIENT * torch.cat([parameters["a"].flatten(), parameters["b"]])


@pytest.mark.parametrize("mu", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_linear_objective_is_differentiated_exactly_at_any_mu(estimator, direction, mu):
    config = zo(estimator=estimator, direction=direction, perturbation_scale=mu)
    gradient, v = estimate_at(SumObjective(linear), PARAMETERS, config)
    directions = torch.stack(
        [draw_perturbation(s, D, direction=direction) for s in seeds(8)]
    ).double()
    slopes = directions @ GRADIENT.double()
    width = 1 if estimator == "forward" else 2
    # float32 rounding of theta + mu u is all that is lost: about 1e-7 |theta| / mu
    tolerance = 4e-6 / min(mu, 1)
    torch.testing.assert_close(v / (width * mu), slopes, rtol=1e-5, atol=tolerance)
    factor = second_moment_inverse(direction, D)
    expected = factor * (slopes[:, None] * directions).mean(0)
    atol = 2 * tolerance * factor
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_estimate_is_unbiased(estimator, direction):
    config = zo(
        num_perturbations=1, estimator=estimator, direction=direction, perturbation_scale=1.0
    )
    estimates = torch.stack(
        [estimate_at(SumObjective(linear), PARAMETERS, config, root=root)[0] for root in range(600)]
    ).double()
    standard_error = estimates.std(dim=0) / math.sqrt(len(estimates))
    error = (estimates.mean(0) - GRADIENT.double()).abs()
    assert (error < 4 * standard_error).all()
    assert (standard_error < 0.1 * GRADIENT.norm()).all()  # else the bound above says nothing


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_direction_has_the_same_expectation(direction):
    """The estimate's length along the gradient is 1: no factor d but on the unit sphere."""
    d = 200
    g = normal(d, seed=5)
    parameters = {"w": torch.zeros(d)}
    config = zo(num_perturbations=600, direction=direction, perturbation_scale=1.0)
    gradient, _ = estimate_at(SumObjective(lambda p: g * p["w"]), parameters, config)
    projection = (gradient @ g / (g @ g)).item()
    # Var <u, g/|g|>^2 is at most 2 (the Gaussian's), so this is four standard errors.
    assert abs(projection - 1) < 4 * math.sqrt(2 / 600)


# --- HO-SFL's surrogate against the first-order client gradient ---------------------------------


def small_split():
    torch_generator = torch.Generator().manual_seed(0)
    client = nn.Sequential(nn.Linear(4, 6), nn.Tanh())  # 30 parameters
    server = nn.Linear(6, 3)
    with torch.no_grad():
        for parameter in (*client.parameters(), *server.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch_generator) * 0.5)
    return client, server, normal(16, 4, seed=7), torch.arange(16) % 3


@pytest.fixture(autouse=True)
def _layers_may_initialise_themselves():
    with torch.random.fork_rng(devices=[]):
        yield


def first_order(client, server, x, y):
    """Return (d loss / d theta_c [d], lambda) by backpropagation through the whole model."""
    parameters = dict(client.named_parameters())
    loss = nn.functional.cross_entropy(server(functional_call(client, parameters, (x,))), y)
    gradients = dict(
        zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)
    )
    z = forward_only(client, trainable_parameters(client), x).clone()
    step = server_step(server, nn.functional.cross_entropy, None, [z], [y], [1.0], dropout_seed=0)
    spec = ParameterSpec.of(gradients)
    return spec.flatten(gradients), step.smashed_gradients[0]


def cosine(a, b):
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


def test_the_surrogates_estimate_approaches_the_first_order_gradient():
    client, server, x, y = small_split()
    gradient, smashed_gradient = first_order(client, server, x, y)
    objective = SurrogateObjective(client, x, smashed_gradient)
    parameters = trainable_parameters(client)
    cosines = []
    for count in (4, 64, 2_000):  # expected: sqrt(P / (P + d - 1))
        config = zo(num_perturbations=count, direction="rademacher")
        cosines.append(cosine(gradient, estimate_at(objective, parameters, config)[0]))
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.9 and cosines[-1] > 0.99


class InFloat64(SurrogateObjective):
    """Evaluated in float64, so that truncation shows and not rounding."""

    def evaluate(self, parameters):
        exact = {name: value.double() for name, value in parameters.items()}
        return super().evaluate(exact)


def test_forward_and_central_agree_to_first_order_in_mu():
    client, server, x, y = small_split()
    _, smashed_gradient = first_order(client, server, x, y)
    parameters = trainable_parameters(client)
    objective = InFloat64(copy.deepcopy(client).double(), x.double(), smashed_gradient.double())

    def slopes(estimator, mu):
        config = zo(estimator=estimator, perturbation_scale=mu)
        width = 1 if estimator == "forward" else 2
        return estimate_at(objective, parameters, config)[1] / (width * mu)

    coarse, fine = (
        (slopes("forward", mu) - slopes("central", mu)).norm().item() for mu in (2e-2, 1e-2)
    )
    assert fine > 0
    assert 1.8 < coarse / fine < 2.2  # halving mu halves the difference
    error = [(slopes("central", mu) - slopes("central", 1e-3)).norm().item() for mu in (4e-2, 2e-2)]
    assert 3.5 < error[0] / error[1] < 4.5  # and central's own error is O(mu^2)


# --- what a probe costs and what it leaves alone ------------------------------------------------


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("backward was called")


class Guarded(nn.Module):
    """A client model that cannot be differentiated and watches how it is called."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        self.calls += 1
        out = NoBackward.apply(self.linear(x))
        assert not out.requires_grad and out.is_inference()
        return out


def test_the_guard_works():
    linear = nn.Linear(3, 2)
    with pytest.raises(AssertionError, match="backward was called"):
        NoBackward.apply(linear(torch.ones(1, 3))).sum().backward()


@pytest.mark.parametrize(
    ("estimator", "has_anchor", "forwards"),
    [("forward", False, 6), ("forward", True, 5), ("central", False, 10), ("central", True, 10)],
)
def test_forward_passes_are_counted_and_never_differentiated(estimator, has_anchor, forwards):
    config = zo(num_perturbations=5, estimator=estimator)
    model, x = Guarded(), normal(4, 3)
    parameters = trainable_parameters(model)
    z = forward_only(model, parameters, x) if has_anchor else None
    model.calls = 0
    objective = SurrogateObjective(model, x, normal(4, 2))
    anchor = None if z is None else objective.value_of(z)
    gradient, v = estimate_at(objective, parameters, config, anchor=anchor)
    assert model.calls == forwards
    assert v.shape == (5,) and v.dtype == torch.float64 and v.abs().min() > 0
    assert not v.requires_grad and not gradient.requires_grad
    assert gradient.dtype == torch.float32
    assert config.num_forwards == (6 if estimator == "forward" else 10)


def test_the_anchor_stands_for_the_value_at_theta():
    model, x = Guarded(), normal(4, 3)
    parameters = trainable_parameters(model)
    objective = SurrogateObjective(model, x, normal(4, 2))
    anchor = objective.value_of(forward_only(model, parameters, x))
    _, without = estimate_at(objective, parameters, zo())
    _, with_anchor = estimate_at(objective, parameters, zo(), anchor=anchor)
    assert torch.equal(without, with_anchor)
    _, moved = estimate_at(objective, parameters, zo(), anchor=anchor + 1)
    assert not torch.equal(without, moved)


def test_a_sum_objective_is_evaluated_in_inference_mode():
    weight = torch.ones(3, requires_grad=True)
    seen = []

    def losses(parameters):
        assert torch.is_inference_mode_enabled()
        seen.append(weight * parameters["w"])
        return seen[-1]

    estimate_at(SumObjective(losses), {"w": torch.ones(3)}, zo(num_perturbations=2))
    assert len(seen) == 3 and not any(value.requires_grad for value in seen)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_probing_changes_no_bit(estimator):
    model, x, smashed_gradient = Guarded(), normal(4, 3), normal(4, 2)
    parameters = trainable_parameters(model)
    spec = ParameterSpec.of(parameters)
    vector = spec.flatten(parameters)
    z = forward_only(model, parameters, x)
    watched = [vector, x, smashed_gradient, z, *parameters.values(), *model.parameters()]
    before = [tensor.detach().clone() for tensor in watched]
    versions = [t._version for t in watched if not t.is_inference()]
    config = zo(estimator=estimator, perturbation_scale=0.3)
    objective = SurrogateObjective(model, x, smashed_gradient)
    v = probe(objective, spec, vector, seeds(8), config, anchor=objective.value_of(z))
    estimate(spec, seeds(8), v, config, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(before, watched, strict=True))
    # Not even "perturbed and restored": nothing was written at all.
    assert versions == [t._version for t in watched if not t.is_inference()]
    assert all(parameter.grad is None for parameter in model.parameters())


# --- numerics -----------------------------------------------------------------------------------


def test_sums_lose_nothing_of_their_difference():
    """A difference of about 1e-3 under a total of about 1e8: subtracting sums would lose it."""
    n = 10_000
    offset = torch.full((n,), 8192.0)
    weight = {"w": torch.ones(1)}
    seed = seeds(1)
    step = draw_perturbation(seed[0], 1).item()

    def losses(parameters):
        # The offset's float32 spacing is 2^-10, which every summand moves by.
        return offset + torch.round(parameters["w"] - 1) * 2.0**-10

    config = zo(num_perturbations=1, perturbation_scale=1 / step if step > 0 else -1 / step)
    spec = ParameterSpec.of(weight)
    v = probe(SumObjective(losses), spec, spec.flatten(weight), seed, config)
    assert v.item() == math.copysign(n * 2.0**-10, step)
    plus, minus = losses({"w": torch.tensor([2.0])}), losses({"w": torch.tensor([1.0])})
    naive = plus.sum() - minus.sum()  # float32 totals near 8.2e7 have a spacing of 8
    assert abs(naive.item() - n * 2.0**-10) > 0.5


def test_the_difference_of_two_inner_products_keeps_every_digit():
    smashed_gradient = torch.tensor([1e4, -1e4, 1.0])
    minus = torch.tensor([1234.5, 1234.5, 3.0])
    plus = minus + torch.tensor([2.0**-13, 0.0, 0.0])  # one spacing of float32 at 1234.5
    products = (plus * smashed_gradient).sum() - (minus * smashed_gradient).sum()
    assert products.item() != 1e4 * 2.0**-13
    objective = SurrogateObjective(nn.Identity(), minus, smashed_gradient)
    assert objective.value_of(plus) - objective.value_of(minus) == 1e4 * 2.0**-13


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 200_000])
def test_inner_products_in_chunks_are_those_of_float64(size):
    a, b = normal(size), normal(size)
    exact = float(torch.dot(a.double(), b.double()))
    assert float64_inner_product(a, b) == pytest.approx(exact, rel=1e-12, abs=1e-12)
    assert float64_inner_product(a.bfloat16(), b) == pytest.approx(
        float(torch.dot(a.bfloat16().double(), b.double())), rel=1e-12, abs=1e-12
    )
    assert float64_sum(a) == pytest.approx(float(a.double().sum()), rel=1e-12, abs=1e-12)


def test_estimate_is_the_plain_ordered_sum():
    spec = ParameterSpec.of({"w": torch.zeros(40)})
    v = torch.tensor([1e4, -3.3, 0.017, -9.9e3], dtype=torch.float64)
    config = zo(num_perturbations=4, estimator="central")
    total = torch.zeros(40)
    for seed, value in zip(seeds(4), v.tolist(), strict=True):
        coefficient = value / (2 * 4 * 1e-3)
        total = total + draw_perturbation(seed, 40) * coefficient
    first = estimate(spec, seeds(4), v, config, device="cpu")
    assert torch.equal(first, total)
    assert torch.equal(first, estimate(spec, seeds(4), v.clone(), config, device="cpu"))
    # Float sums depend on their order, which is why the order is part of the definition.
    assert not torch.equal(first, estimate(spec, seeds(4)[::-1], v.flip(0), config, device="cpu"))


def test_estimate_divides_by_the_number_of_directions():
    spec = ParameterSpec.of({"w": torch.zeros(5)})
    v = torch.tensor([0.5], dtype=torch.float64)
    once = estimate(spec, seeds(1), v, zo(), device="cpu")
    twice = estimate(spec, seeds(1) * 2, v.repeat(2), zo(), device="cpu")
    torch.testing.assert_close(once, twice, rtol=1e-6, atol=0)
    torch.testing.assert_close(once, draw_perturbation(seeds(1)[0], 5) * 500, rtol=1e-6, atol=0)


def test_seeds_and_scalars_must_pair_up():
    spec = ParameterSpec.of({"w": torch.zeros(5)})
    with pytest.raises(ValueError, match="shorter"):
        estimate(spec, seeds(3), torch.ones(2), zo(), device="cpu")


def test_no_parameters_at_all():
    gradient, v = estimate_at(SumObjective(lambda p: torch.ones(2)), {}, zo())
    assert gradient.shape == (0,) and v.tolist() == [0] * 8


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_perturbations": 0}, r"num_perturbations \(P\) must be .* got 0"),
        ({"num_perturbations": -3}, "got -3"),
        ({"num_perturbations": True}, "got True"),
        ({"num_perturbations": 2.5}, "got 2.5"),
        ({"perturbation_scale": 0.0}, r"perturbation_scale \(mu\) .* got 0.0"),
        ({"perturbation_scale": -1e-3}, "got -0.001"),
        ({"perturbation_scale": math.inf}, "got inf"),
        ({"perturbation_scale": math.nan}, "got nan"),
        ({"estimator": "centre"}, "unknown estimator 'centre'; did you mean 'central'"),
        ({"direction": "normal"}, "unknown direction 'normal'; .*gaussian"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(UserError, match=message):
        zo(**changes)
