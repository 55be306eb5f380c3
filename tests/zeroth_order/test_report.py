"""Reports of estimates: the estimate is rebuilt, the true gradient is autograd's, modes stay."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.noise import draw_perturbation
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import (
    EstimateReport,
    ProbedDirections,
    SurrogateObjective,
    ZerothOrderConfig,
    estimate,
    loss_objective,
    probe,
    quality_of,
    surrogate_objective,
)

SEEDS = (11, 12, 13, 14)


class Probed:
    """Three clients, one small client model with dropout."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3))
        generator = torch.Generator().manual_seed(1)
        self.inputs = {m: torch.randn(6, 5, generator=generator) for m in range(3)}
        self.labels = {m: torch.randint(0, 3, (6,), generator=generator) for m in range(3)}
        self.lambdas = {m: torch.randn(6, 3, generator=generator) for m in range(3)}
        self.weights = {0: 0.5, 1: 0.2, 2: 0.3}
        parameters = trainable_parameters(self.model)
        self.spec = ParameterSpec.of(parameters)
        self.vector = self.spec.flatten(parameters)

    def batches(self, client_id, local_step):
        return self.inputs[client_id], self.labels[client_id]

    def report(self, **changes):
        values = {
            "round": 1,
            "spec": self.spec,
            "vector": self.vector,
            "config": ZerothOrderConfig(num_perturbations=len(SEEDS)),
            "probed": [ProbedDirections(SEEDS, (0.001, -0.002, 0.0, 0.004))],
            "weights": self.weights,
            "objective": surrogate_objective(self.model, self.lambdas),
        }
        return EstimateReport(**values | changes)

    def slopes(self, client_id, config, seeds=SEEDS):
        objective = SurrogateObjective(
            self.model.eval(), self.inputs[client_id], self.lambdas[client_id]
        )
        return probe(objective, self.spec, self.vector, seeds, config)


@pytest.fixture
def probed():
    return Probed()


def test_the_true_gradient_is_what_backpropagation_gives(probed):
    probed.model.eval().zero_grad()
    for m, weight in probed.weights.items():
        (weight * probed.model(probed.inputs[m]) * probed.lambdas[m]).sum().backward()
    expected = probed.spec.flatten({n: p.grad for n, p in probed.model.named_parameters()})
    found = probed.report().true_gradient(probed.batches)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected)


def test_the_true_gradient_of_a_loss_over_some_of_the_parameters(probed):
    last = {n: p for n, p in trainable_parameters(probed.model).items() if n.startswith("3.")}
    spec = ParameterSpec.of(last)
    report = probed.report(
        spec=spec,
        vector=spec.flatten(last),
        objective=loss_objective(probed.model, F.cross_entropy),
    )
    probed.model.eval().zero_grad()
    for m, weight in probed.weights.items():
        loss = F.cross_entropy(probed.model(probed.inputs[m]), probed.labels[m])
        (weight * loss).backward()
    expected = spec.flatten({n: p.grad for n, p in probed.model.named_parameters() if n in last})
    torch.testing.assert_close(report.true_gradient(probed.batches).float(), expected)


def test_parameters_that_the_objective_does_not_use_have_no_gradient(probed):
    report = probed.report(objective=lambda m, parameters, x, y: x.sum().requires_grad_())
    assert not report.true_gradient(probed.batches).any()


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("direction", ["gaussian", "rademacher", "sphere"])
def test_the_estimate_is_the_one_that_updates_are_made_of(probed, estimator, direction):
    config = ZerothOrderConfig(
        num_perturbations=len(SEEDS), estimator=estimator, direction=direction
    )
    scalars = sum(w * probed.slopes(m, config) for m, w in probed.weights.items())
    report = probed.report(config=config, probed=[ProbedDirections(SEEDS, scalars.tolist())])
    expected = quality_of(
        estimate(probed.spec, SEEDS, scalars, config, device="cpu"),
        report.true_gradient(probed.batches),
        variance=0.0,
        num_directions=len(SEEDS),
    )
    found = report.quality(probed.batches)
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-6)
    assert found.norm_ratio == pytest.approx(expected.norm_ratio, rel=1e-6)
    assert found.num_directions == len(SEEDS)


def test_enough_directions_of_a_smooth_objective_find_the_gradient(probed):
    config = ZerothOrderConfig(num_perturbations=4000, estimator="central")
    seeds = range(4000)
    scalars = sum(w * probed.slopes(m, config, seeds) for m, w in probed.weights.items())
    report = probed.report(config=config, probed=[ProbedDirections(seeds, scalars.tolist())])
    assert report.quality(probed.batches).cosine > 0.99


def test_private_directions_are_summed_with_their_clients_weights(probed):
    config = ZerothOrderConfig(num_perturbations=2)
    own = {m: (100 + m, 200 + m) for m in probed.weights}
    parts = [
        ProbedDirections(own[m], probed.slopes(m, config, own[m]).tolist(), weight)
        for m, weight in probed.weights.items()
    ]
    report = probed.report(config=config, probed=parts)
    total, variance = torch.zeros(probed.spec.num_elements, dtype=torch.float64), 0.0
    for part in parts:
        terms = [
            scalar / config.perturbation_scale * draw_perturbation(seed, len(total)).double()
            for seed, scalar in zip(part.seeds, part.scalars, strict=True)
        ]
        mean = sum(terms) / 2
        total += part.weight * mean
        variance += part.weight**2 * sum(float((g - mean).square().sum()) for g in terms) / 2
    true = report.true_gradient(probed.batches)
    found = report.quality(probed.batches)
    assert found.num_directions == 6
    assert found.norm_ratio == pytest.approx(float(total.norm() / true.norm()))
    assert found.relative_variance == pytest.approx(variance / float(true.norm()) ** 2)


def test_measuring_changes_neither_modes_nor_parameters_nor_generators(probed):
    probed.model.train()
    probed.model[1].eval()
    vector, random = probed.vector.clone(), torch.get_rng_state()
    report = probed.report()
    report.quality(probed.batches)
    assert [m.training for m in probed.model.modules()] == [True, True, False, True, True]
    assert torch.equal(probed.vector, vector) and probed.vector.grad is None
    assert all(p.grad is None for p in probed.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    with torch.inference_mode():  # wherever it is called from
        assert report.quality(probed.batches).true_norm > 0
