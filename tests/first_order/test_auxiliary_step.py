"""Client steps with a head, and the alignment that teaches a head the server's gradient."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.first_order import align_, imitated_step, local_loss_step
from leansplit.first_order.auxiliary_step import imitated_gradient
from leansplit.models import LocalModel

CALL = {"root_seed": 1, "round": 2, "client_id": 3}


def layers(seed, *sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = []
        for a, b in itertools.pairwise(sizes):
            modules += [nn.Linear(a, b), nn.Tanh()]
        return nn.Sequential(*modules[:-1])


def batch(n, features=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, features, generator=generator),
        torch.randint(0, 3, (n,), generator=generator),
    )


def local(seed=0):
    return LocalModel(layers(seed, 6, 5), layers(seed + 1, 5, 4, 3))


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_a_local_loss_step_is_plain_training_and_returns_z_from_before():
    model, plain = local(), local()
    x, y = batch(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    z = local_loss_step(model, F.cross_entropy, optimizer, x, y, dropout_seed=0)
    assert torch.equal(z, plain.client(x)) and not z.requires_grad
    F.cross_entropy(plain(x)[1], y).backward()
    torch.optim.SGD(plain.parameters(), lr=0.3).step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_an_imitated_step_moves_the_client_model_alone_along_the_heads_gradient():
    model, plain = local(), local()
    x, y = batch(7)
    head = bits(model.auxiliary)
    optimizer = torch.optim.SGD(model.client.parameters(), lr=0.3)
    z = imitated_step(model, F.cross_entropy, optimizer, x, y, dropout_seed=0)
    assert torch.equal(z, plain.client(x)) and not z.requires_grad
    F.cross_entropy(plain(x)[1], y).backward()
    torch.optim.SGD(plain.client.parameters(), lr=0.3).step()
    for name, value in plain.client.state_dict().items():
        torch.testing.assert_close(model.client.state_dict()[name], value)
    assert all(torch.equal(value, model.auxiliary.state_dict()[k]) for k, value in head.items())
    assert all(parameter.grad is None for parameter in model.auxiliary.parameters())


def test_the_client_pays_for_no_second_order_graph():
    model = local()
    z, y = model.client(batch(4)[0]).detach(), batch(4)[1]
    assert not imitated_gradient(model.auxiliary, F.cross_entropy, z, y).requires_grad
    kept = imitated_gradient(model.auxiliary, F.cross_entropy, z, y, is_trained=True)
    assert kept.requires_grad
    torch.testing.assert_close(
        kept.detach(), imitated_gradient(model.auxiliary, F.cross_entropy, z, y)
    )


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_targets_and_imitations_have_one_scale_whatever_the_batch(batch_size):
    """A head that is the server model already has nothing to learn."""
    server = layers(3, 5, 4, 3)
    head = copy.deepcopy(server)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    z, y = batch(11, features=5)
    align_(head, server, F.cross_entropy, optimizer, z, y, epochs=3, batch_size=batch_size, **CALL)
    for name, value in server.state_dict().items():
        torch.testing.assert_close(head.state_dict()[name], value, rtol=0, atol=1e-4)


def test_alignment_teaches_the_servers_gradient():
    server, head = layers(3, 5, 4, 3), layers(9, 5, 4, 3)
    before = bits(server)
    z, y = batch(40, features=5)
    target = imitated_gradient(server, F.cross_entropy, z, y)

    def error():
        imitated = imitated_gradient(head, F.cross_entropy, z, y)
        return ((imitated - target).norm() / target.norm()).item()

    untaught = error()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    align_(head, server, F.cross_entropy, optimizer, z, y, epochs=150, batch_size=20, **CALL)
    assert untaught > 0.8 and error() < 0.2
    assert all(torch.equal(value, server.state_dict()[k]) for k, value in before.items())
    assert all(parameter.grad is None for parameter in server.parameters())


def test_alignment_is_deterministic_and_takes_the_clients_own_order():
    server, z, y = layers(3, 5, 4, 3), *batch(12, features=5)

    def aligned(**call):
        head = layers(9, 5, 4, 3)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        align_(head, server, F.cross_entropy, optimizer, z, y, epochs=2, batch_size=5, **call)
        return bits(head)["0.weight"]

    state = torch.get_rng_state()
    first = aligned(**CALL)
    assert torch.equal(first, aligned(**CALL))
    for other in ({"root_seed": 2}, {"round": 3}, {"client_id": 4}):
        assert not torch.equal(first, aligned(**(CALL | other)))
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_to_align_is_no_error():
    server, head = layers(3, 5, 4, 3), nn.Flatten()
    z, y = batch(3, features=5)
    align_(head, server, F.cross_entropy, None, z, y, epochs=1, batch_size=2, **CALL)
