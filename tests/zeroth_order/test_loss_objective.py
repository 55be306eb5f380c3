"""The objective of clients that hold the whole model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.noise import draw_perturbation, perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import ESTIMATORS, LossObjective, ZerothOrderConfig, probe


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def objective(model):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 4, generator=generator)
    labels = torch.randint(0, 3, (8,), generator=generator)
    return LossObjective(model, F.cross_entropy, inputs, labels)


def test_the_loss_is_evaluated_without_a_graph_and_touches_no_parameter():
    model = network()
    zeros = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    value = objective(model).evaluate(zeros)
    assert value == pytest.approx(torch.log(torch.tensor(3.0)).item())
    for name, parameter in network().named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_differences_approach_the_directional_derivatives(estimator):

    model = network()
    target = objective(model)
    F.cross_entropy(model(target.inputs), target.labels).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    parameters = trainable_parameters(model)
    spec = ParameterSpec.of(parameters)
    config = ZerothOrderConfig(num_perturbations=3, estimator=estimator)
    seeds = perturbation_seeds(0, 3, round=1)
    v = probe(target, spec, spec.flatten(parameters), seeds, config)
    width = 1e-3 if estimator == "forward" else 2e-3
    for seed, value in zip(seeds, v.tolist(), strict=True):
        expected = draw_perturbation(seed, spec.num_elements) @ spec.flatten(gradients)
        assert value / width == pytest.approx(float(expected), abs=0.02)
