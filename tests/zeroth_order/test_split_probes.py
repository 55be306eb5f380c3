import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.noise import DIRECTIONS, draw_perturbation
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import (
    ESTIMATORS,
    ServerObjective,
    ZerothOrderConfig,
    forward_only,
    probe_smashed_data,
)

SEEDS = (5, 6, 7)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=index))
    return layer


@pytest.fixture
def client():
    with torch.random.fork_rng(devices=[]):
        model = linear(4, 6)
    parameters = trainable_parameters(model)
    spec = ParameterSpec.of(parameters)
    return model, spec, spec.flatten(parameters)


@pytest.mark.parametrize("with_anchor", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_smashed_data_are_those_of_the_perturbed_models(client, estimator, direction, with_anchor):
    model, spec, vector = client
    config = ZerothOrderConfig(
        num_perturbations=3, perturbation_scale=0.1, estimator=estimator, direction=direction
    )
    inputs, before = normal(8, 4, seed=2), vector.clone()
    probed = probe_smashed_data(model, spec, vector, inputs, SEEDS, config, with_anchor=with_anchor)
    assert torch.equal(vector, before)
    anchor = forward_only(model, spec.views(vector), inputs)
    has_anchor = with_anchor or estimator == "forward"
    assert torch.equal(probed.anchor, anchor if has_anchor else torch.empty(0))
    assert len(probed.pairs) == len(SEEDS)
    for seed, (plus, minus) in zip(SEEDS, probed.pairs, strict=True):
        u = draw_perturbation(seed, spec.num_elements, direction=direction)
        up = forward_only(model, spec.views(vector + u * 0.1), inputs)
        down = forward_only(model, spec.views(vector - u * 0.1), inputs)
        assert torch.equal(plus, up)
        assert torch.equal(minus, down if estimator == "central" else anchor)


def test_a_client_without_parameters_sends_the_same_thing_both_ways():
    model, spec = nn.Flatten(), ParameterSpec.of({})
    config = ZerothOrderConfig(num_perturbations=2, estimator="central", direction="sphere")
    inputs = normal(3, 2, 2)
    probed = probe_smashed_data(
        model, spec, torch.zeros(0), inputs, SEEDS[:2], config, with_anchor=False
    )
    for plus, minus in probed.pairs:
        assert torch.equal(plus, inputs.flatten(1)) and torch.equal(plus, minus)


def test_two_values_of_the_server_differ_by_what_was_perturbed_alone():
    """The dropout mask is that of the seed at every call, and no global state moves."""
    with torch.random.fork_rng(devices=[]):
        server = nn.Sequential(nn.Dropout(0.5), linear(6, 3)).train()
    parameters, z = trainable_parameters(server), normal(8, 6)
    labels = torch.arange(8) % 3
    first = ServerObjective(server, F.cross_entropy, labels, dropout_seed=1)
    value = first(parameters, z)
    assert torch.equal(first(parameters, z), value) and not value.requires_grad
    other = ServerObjective(server, F.cross_entropy, labels, dropout_seed=2)
    assert not torch.equal(other(parameters, z), value)
    assert abs(float(first(parameters, z + 1e-5) - value)) < 1e-4
    moved = {name: tensor + 1e-5 for name, tensor in parameters.items()}
    assert abs(float(first(moved, z) - value)) < 1e-4
