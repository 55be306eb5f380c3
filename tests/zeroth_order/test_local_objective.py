"""HERON-SFL's objective: the local loss, precise enough to be subtracted."""

import torch
from torch import nn
from torch.nn import functional as F

from leansplit.models import LocalModel
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import LocalLossObjective, ZerothOrderConfig, probe


def objective(loss=F.cross_entropy):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LocalModel(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3))
        x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    return LocalLossObjective(model, loss, x, y), model


def test_one_pass_gives_smashed_data_and_loss_without_a_graph():
    wanted, model = objective()
    parameters = trainable_parameters(model)
    z, value = wanted.evaluate_with_smashed_data(parameters)
    assert torch.equal(z, model.client(wanted.inputs))
    torch.testing.assert_close(
        value, F.cross_entropy(model(wanted.inputs)[1], wanted.labels).item()
    )
    assert z.is_inference()
    assert wanted.evaluate(parameters) == value


def test_probing_never_writes_the_model():
    wanted, model = objective()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec = ParameterSpec.of(trainable_parameters(model))
    theta = spec.flatten(trainable_parameters(model))
    probe(wanted, spec, theta, (1, 2), ZerothOrderConfig(num_perturbations=2))
    assert all(torch.equal(value, model.state_dict()[k]) for k, value in before.items())
    assert torch.equal(theta, spec.flatten(trainable_parameters(model)))


def test_a_large_constant_in_the_loss_costs_no_digits():
    """In float32, 1e4 + F is known to 1e-3 and the difference would be gone."""
    config = ZerothOrderConfig(num_perturbations=4, perturbation_scale=1e-4)
    plain, model = objective()
    shifted, _ = objective(lambda outputs, labels: F.cross_entropy(outputs, labels) + 1e4)
    spec = ParameterSpec.of(trainable_parameters(model))
    theta = spec.flatten(trainable_parameters(model))
    torch.testing.assert_close(
        probe(shifted, spec, theta, (1, 2, 3, 4), config),
        probe(plain, spec, theta, (1, 2, 3, 4), config),
        rtol=1e-4,
        atol=1e-9,
    )
