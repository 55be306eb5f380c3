"""What watchers differentiate is what clients probed: the same values, modes left as they were."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.models import LocalModel
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import (
    EstimateReport,
    LocalLossObjective,
    LossObjective,
    ServerObjective,
    ZerothOrderConfig,
    cut_objective,
    estimate,
    forward_only,
    local_loss_objective,
    loss_objective,
    probe,
)

SEEDS = (3, 4, 5)
MASK = 77


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def halves():
    """A client and a server half, with dropout on both sides and layers of the same names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        client = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Tanh())
        server = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    return client, server


@pytest.fixture
def batch():
    return normal(7, 5, seed=1), torch.randint(
        0, 3, (7,), generator=torch.Generator().manual_seed(2)
    )


def moved(model):
    """Parameters that are not the model's own."""
    return {name: value + 0.1 for name, value in trainable_parameters(model).items()}


def test_both_halves_see_the_probed_loss_under_its_mask(halves, batch):
    client, server = halves
    theta_c, theta_s = moved(client), moved(server)
    probed = ServerObjective(server.train(), F.cross_entropy, batch[1], MASK)
    expected = probed(theta_s, forward_only(client.eval(), theta_c, batch[0]))
    client.train()
    server.eval()
    random = torch.get_rng_state()
    for part, at, held in (("client", theta_c, theta_s), ("server", theta_s, theta_c)):
        objective = cut_objective(
            client, server, F.cross_entropy, part=part, held=held, dropout_seed=MASK
        )
        leaves = {name: value.clone().requires_grad_(True) for name, value in at.items()}
        value = objective(0, leaves, *batch)
        assert torch.equal(value, expected)
        assert all(g.any() for g in torch.autograd.grad(value, list(leaves.values())))
    assert client.training and not server.training
    assert torch.equal(torch.get_rng_state(), random)


def test_without_a_mask_the_server_is_in_evaluation_mode_and_holds_its_own(halves, batch):
    client, server = halves
    server.train()
    theta_c = moved(client)
    value = cut_objective(client, server, F.cross_entropy)(0, theta_c, *batch)
    assert server.training
    smashed = forward_only(client.eval(), theta_c, batch[0])
    expected = F.cross_entropy(server.eval()(smashed.clone()), batch[1])
    assert torch.equal(value, expected)


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("kind", ["whole model", "local loss"])
def test_scalars_that_clients_keep_are_probed_again(kind, estimator, halves, batch):
    config = ZerothOrderConfig(num_perturbations=len(SEEDS), estimator=estimator)
    if kind == "whole model":
        model = nn.Sequential(*halves)
        kept, objective = LossObjective, loss_objective(model, F.cross_entropy)
    else:
        model = LocalModel(*halves)
        kept, objective = LocalLossObjective, local_loss_objective(model, F.cross_entropy)
    weights = moved(model)
    spec = ParameterSpec.of(weights)
    theta = spec.flatten(weights)
    v = probe(kept(model.eval(), F.cross_entropy, *batch), spec, theta, SEEDS, config)
    model.train()
    report = EstimateReport.of_client(4, 9, weights, SEEDS, None, objective, config)
    asked = []

    def batches(client_id, local_step):
        asked.append((client_id, local_step))
        return batch

    with torch.inference_mode():  # wherever it is called from
        found, variance = report.estimate(batches)
    assert asked == [(9, 0)] and variance > 0
    assert torch.equal(report.vector, theta)
    expected = estimate(spec, SEEDS, v, config, device="cpu")
    torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=1e-6)
    known = EstimateReport.of_client(4, 9, weights, SEEDS, v, objective, config)
    assert torch.equal(known.estimate(batches)[0], found)
    assert model.training
