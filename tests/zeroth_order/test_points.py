"""Probes that are evaluated elsewhere: points and differences equal ``probe``'s own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.noise import perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import (
    ESTIMATORS,
    LossObjective,
    ZerothOrderConfig,
    paired_differences,
    perturbed_points,
    probe,
)

SEEDS = perturbation_seeds(0, 3, round=1)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_points_and_differences_are_what_probe_does(estimator):
    model, (x, y) = network(), batch()
    parameters = trainable_parameters(model)
    spec = ParameterSpec.of(parameters)
    vector = spec.flatten(parameters)
    before = vector.clone()
    config = ZerothOrderConfig(num_perturbations=3, estimator=estimator)
    objective = LossObjective(model, F.cross_entropy, x, y)
    points = list(perturbed_points(vector, SEEDS, config))
    assert len(points) == 3 * (1 if config.needs_anchor else 2)
    values = [float(objective.evaluate(spec.views(point))) for point in points]
    anchor = float(objective.evaluate(spec.views(vector)))
    v = paired_differences(values, anchor, config)
    assert v.dtype == torch.float64
    assert torch.equal(v, probe(objective, spec, vector, SEEDS, config))
    assert torch.equal(vector, before)
    assert len(points) + config.needs_anchor == config.num_forwards


def test_differences_by_hand():
    forward = ZerothOrderConfig(estimator="forward")
    central = ZerothOrderConfig(estimator="central")
    assert paired_differences([3.0, 5.0], 1.0, forward).tolist() == [2.0, 4.0]
    assert paired_differences([3.0, 5.0, 7.0, 1.0], 1.0, central).tolist() == [-2.0, 6.0]


def test_the_loss_is_evaluated_without_a_graph_and_touches_no_parameter():
    model, (x, y) = network(), batch()
    objective = LossObjective(model, F.cross_entropy, x, y)
    zeros = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    value = objective.evaluate(zeros)
    assert value.is_inference() and value.grad_fn is None
    assert float(value) == pytest.approx(torch.log(torch.tensor(3.0)).item())
    for name, parameter in network().named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name])
