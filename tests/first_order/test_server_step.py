import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.first_order import (
    backward_step,
    local_step,
    server_step,
    train_forward,
)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def server_model(dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


SIZES = (4, 2, 7)
SMASHED = [normal(n, 5, seed=n) for n in SIZES]
LABELS = [torch.arange(n) % 3 for n in SIZES]
WEIGHTS = [0.5, 0.2, 0.3]


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def step(model, weights=WEIGHTS, *, optimizer=None, seed=0, smashed=SMASHED, labels=LABELS):
    return server_step(
        model, F.cross_entropy, optimizer, smashed, labels, weights, dropout_seed=seed
    )


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_one_client_equals_plain_autograd_bit_for_bit():
    model, plain = server_model(), server_model()
    out = step(model, [1.0], optimizer=sgd(model), smashed=SMASHED[:1], labels=LABELS[:1])
    z = SMASHED[0].clone().requires_grad_()
    optimizer = sgd(plain)
    loss = F.cross_entropy(plain(z), LABELS[0])
    loss.backward()
    optimizer.step()
    assert out.losses == (loss.item(),)
    assert torch.equal(out.smashed_gradients[0], z.grad)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_smashed_gradients_are_those_of_each_clients_own_unweighted_mean_loss():
    out = step(server_model())
    for m, (smashed, y) in enumerate(zip(SMASHED, LABELS, strict=True)):
        z = smashed.clone().requires_grad_()
        loss = F.cross_entropy(server_model()(z), y)
        (gradient,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(out.smashed_gradients[m], gradient, rtol=1e-5, atol=1e-8)
        assert out.smashed_gradients[m].shape == z.shape
        assert out.losses[m] == pytest.approx(loss.item(), rel=1e-6)


def test_weights_scale_the_server_gradient_and_not_lambda():
    model = server_model()
    first = step(model, [0.5, 0.2, 0.3], optimizer=sgd(model, lr=1e-9))
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for w, z, y in zip([0.5, 0.2, 0.3], SMASHED, LABELS, strict=True):
        alone = server_model()
        F.cross_entropy(alone(z), y).backward()
        expected = [e + w * g for e, g in zip(expected, gradients(alone), strict=True)]
    torch.testing.assert_close(gradients(model), expected, rtol=1e-5, atol=1e-7)

    other = step(server_model(), [0.05, 0.9, 0.05])
    for a, b in zip(first.smashed_gradients, other.smashed_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_equal_weights_take_the_mean_of_the_clients_gradients():
    model = server_model()
    step(model, [1 / 3] * 3, optimizer=sgd(model))
    per_client = []
    for z, y in zip(SMASHED, LABELS, strict=True):
        alone = server_model()
        F.cross_entropy(alone(z), y).backward()
        per_client.append(gradients(alone))
    start = server_model()
    for index, (after, before) in enumerate(
        zip(model.parameters(), start.parameters(), strict=True)
    ):
        mean = torch.stack([g[index] for g in per_client]).mean(0)
        torch.testing.assert_close(before - after, 0.1 * mean, rtol=1e-4, atol=1e-7)


def test_sample_weights_equal_the_mean_over_all_samples():
    model, pooled = server_model(), server_model()
    total = sum(SIZES)
    step(model, [n / total for n in SIZES], optimizer=sgd(model))
    F.cross_entropy(pooled(torch.cat(SMASHED)), torch.cat(LABELS)).backward()
    torch.testing.assert_close(gradients(model), gradients(pooled), rtol=1e-5, atol=1e-7)


def test_old_gradients_do_not_leak_in():
    model, fresh = server_model(), server_model()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    step(model, optimizer=sgd(model))
    step(fresh, optimizer=sgd(fresh))
    for mine, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_without_an_optimizer_nothing_moves_and_lambda_is_the_same():
    model, trained = server_model(), server_model()
    before = copy.deepcopy(model.state_dict())
    out = step(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    expected = step(trained, optimizer=sgd(trained))
    for a, b in zip(out.smashed_gradients, expected.smashed_gradients, strict=True):
        assert torch.equal(a, b)


def test_smashed_data_from_inference_mode_and_from_a_graph_are_both_taken():
    with torch.inference_mode():
        inferred = [z.clone() for z in SMASHED]
    attached = [z.clone().requires_grad_() * 1.0 for z in SMASHED]
    expected = step(server_model())
    for smashed in (inferred, attached):
        out = step(server_model(), smashed=smashed)
        assert out.losses == expected.losses
        for gradient in out.smashed_gradients:
            assert not gradient.requires_grad and not gradient.is_inference()
    assert all(z.grad_fn is not None for z in attached)  # nobody freed the client's graph


def test_works_where_gradients_are_switched_off():
    with torch.no_grad():
        out = step(server_model())
    assert out.losses == step(server_model()).losses


def test_dropout_follows_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (step(server_model(dropout=0.5), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.losses == again.losses
    assert first.losses != other.losses
    assert first.losses != step(server_model()).losses  # dropout was on


def test_the_server_model_is_put_in_training_mode():
    model = server_model(dropout=0.5).eval()
    step(model)
    assert model.training


def test_every_batch_needs_labels_and_a_weight():
    with pytest.raises(ValueError, match="zip"):
        step(server_model(), [0.5, 0.5])
    with pytest.raises(ValueError, match="zip"):
        step(server_model(), labels=LABELS[:2])


# --- the client half ----------------------------------------------------------------------------


def test_split_steps_equal_one_step_on_the_whole():
    """Backward to the cut, lambda, backward from the cut: the chain rule, bit for bit."""
    x, y = SMASHED[0], LABELS[0]
    whole = server_model(dropout=0.0)
    plain = copy.deepcopy(whole)
    client, server = whole[:2], whole[2:]
    smashed = train_forward(client, x, dropout_seed=0)
    assert smashed.requires_grad
    out = step(server, [1.0], optimizer=sgd(server), smashed=[smashed], labels=[y])
    backward_step(sgd(client), smashed, out.smashed_gradients[0])

    value = local_step(plain, F.cross_entropy, sgd(plain), x, y, dropout_seed=0)
    assert out.losses == (value,)
    for mine, theirs in zip(whole.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_client_dropout_follows_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    model = server_model(dropout=0.5).eval()
    first, again, other = (train_forward(model, SMASHED[0], dropout_seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_client_with_nothing_to_train_takes_no_step():
    model = server_model()
    before = copy.deepcopy(model.state_dict())
    backward_step(None, train_forward(model, SMASHED[0], dropout_seed=0), torch.ones(4, 3))
    local_step(model, F.cross_entropy, None, SMASHED[0], LABELS[0], dropout_seed=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
