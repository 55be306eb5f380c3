"""Recomputed gradients against plain autograd, their memory and their passes."""

import copy

import pytest
import torch
from torch import nn

from leansplit.costs import count_flops, peak_tensor_bytes
from leansplit.errors import UserError
from leansplit.first_order import (
    backward_step,
    recompute_forward,
    recompute_gradients,
    recompute_step,
    replayed_forwards,
    train_forward,
)
from leansplit.models import build_model, chain, split_at
from leansplit.noise import torch_seeded
from leansplit.parameters import trainable_parameters
from leansplit.zeroth_order import forward_only

SEED, BATCH = 3, 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def registered(name, cut, shape, **options):
    def build():
        model = build_model(name, input_shape=shape, num_classes=3, seed=1, options=options)
        return split_at(model, cut).client_model, normal(BATCH, *shape)

    return build


def sequential(layers):
    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(*layers()), normal(BATCH, 4)

    return build


def embedding():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()
        return nn.Sequential(*layers), torch.arange(BATCH * 5).reshape(BATCH, 5) % 7


def frozen_below():
    model, x = sequential(lambda: [nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()])()
    model[0].requires_grad_(False)
    return model, x


def shared():
    layer = nn.Linear(4, 4, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(normal(4, 4))
        layer.bias.fill_(0.1)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh()), normal(BATCH, 4)


MODELS = {
    "digits-cnn": registered("digits-cnn", "pool2", (1, 8, 8)),
    "cifar-cnn": registered("cifar-cnn", "relu3", (3, 16, 16), norm="group"),
    "resnet18": registered("resnet18", "layer2", (3, 16, 16), width=8),
    "resnet18 opened": registered("resnet18", "layer1.0", (3, 16, 16), width=8),
    "frozen statistics": registered("resnet18", "layer1", (3, 8, 8), width=8, norm="batch_frozen"),
    "one link": sequential(lambda: [nn.Linear(4, 4)]),
    "in place": sequential(lambda: [nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)]),
    "integer inputs": embedding,
    "frozen below": frozen_below,
    "shared layer": shared,
}
DROPOUT = sequential(
    lambda: [nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.3)]
)


def plain(model, x):
    """Smashed data and gradients with torch's own graph."""
    z = train_forward(model, x, dropout_seed=SEED)
    gradient = normal(*z.shape, seed=9)
    torch.autograd.backward([z], [gradient])
    return z.detach(), gradient, {name: p.grad for name, p in model.named_parameters()}


def recomputed(model, x, gradient, micro_batch):
    links = chain(model)
    z = recompute_forward(links, x, dropout_seed=SEED, micro_batch=micro_batch)
    recompute_gradients(links, x, gradient, dropout_seed=SEED, micro_batch=micro_batch)
    return z, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("micro_batch", [0, BATCH, 100])
@pytest.mark.parametrize("build", [*MODELS.values(), DROPOUT], ids=[*MODELS, "dropout"])
def test_a_whole_batch_equals_plain_autograd_bit_for_bit(build, micro_batch):
    model, x = build()
    z, gradient, expected = plain(copy.deepcopy(model), x)
    mine, got = recomputed(model, x, gradient, micro_batch)
    assert torch.equal(mine, z) and not mine.requires_grad
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (value is None) == (got[name] is None), name
        assert value is None or torch.equal(got[name], value), name


@pytest.mark.parametrize("micro_batch", [1, 4, 5])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_micro_batches_add_up_to_the_batch(build, micro_batch):
    model, x = build()
    z, gradient, expected = plain(copy.deepcopy(model), x)
    mine, got = recomputed(model, x, gradient, micro_batch)
    torch.testing.assert_close(mine, z, rtol=1e-4, atol=1e-5)
    for name, value in expected.items():
        if value is not None:
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)


def test_a_step_equals_a_step_with_a_kept_graph():
    model, x = MODELS["resnet18"]()
    other = copy.deepcopy(model)
    mine, theirs = (
        torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1) for m in (model, other)
    )
    for _ in range(3):
        gradient = normal(*recompute_forward(chain(model), x, dropout_seed=SEED).shape)
        recompute_step(mine, chain(model), x, gradient, dropout_seed=SEED)
        backward_step(theirs, train_forward(other, x, dropout_seed=SEED), gradient)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is None  # held during the step only


def test_nothing_to_train_is_no_step():
    recompute_step(None, [nn.Tanh()], torch.ones(1), torch.ones(1), dropout_seed=0)
    recompute_gradients([nn.Tanh()], torch.ones(1), torch.ones(1), dropout_seed=0)


def test_the_generator_is_left_alone():
    before = torch.get_rng_state()
    model, x = DROPOUT()
    recomputed(model, x, torch.ones(BATCH, 4), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_random_layers_refuse_micro_batches():
    model, x = DROPOUT()
    with pytest.raises(UserError, match="set micro_batch to 0"):
        recompute_forward(chain(model), x, dropout_seed=0, micro_batch=2)


# --- what it costs ------------------------------------------------------------------------------


def test_peak_memory_of_a_deep_client():
    model, x = registered("resnet18", "layer2", (3, 32, 32), width=8)()
    x = normal(16, 3, 32, 32)

    def inference():
        forward_only(model, trainable_parameters(model), x)

    def full():
        z = train_forward(model, x, dropout_seed=0)
        torch.autograd.backward([z], [torch.zeros_like(z)])
        model.zero_grad()

    def recompute(micro_batch):
        def step():
            z = recompute_forward(chain(model), x, dropout_seed=0, micro_batch=micro_batch)
            gradient = torch.zeros_like(z)
            del z
            recompute_gradients(chain(model), x, gradient, dropout_seed=0, micro_batch=micro_batch)
            model.zero_grad()

        return peak_tensor_bytes(step)

    least, most = peak_tensor_bytes(inference), peak_tensor_bytes(full)
    assert recompute(0) < 0.65 * most  # the graph of one block at a time
    assert recompute(8) < 0.4 * most and recompute(8) < 1.1 * least
    assert recompute(4) < least < 0.4 * most


def linear(depth):
    layers = [nn.Linear(20, 20, device="meta").to_empty(device="cpu") for _ in range(depth)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.fill_(0.01)
            layer.bias.zero_()
    return nn.Sequential(*layers)


def test_activations_do_not_add_up_with_depth():
    """Beyond weights, their gradients and one link's graph only log2(L) activations are alive."""
    x = torch.ones(5_000, 20)
    activation = 4 * 5_000 * 20

    def peak(depth):
        model = linear(depth)
        step = lambda: recompute_gradients(list(model), x, torch.zeros(5_000, 20), dropout_seed=0)  # noqa: E731
        return peak_tensor_bytes(step) - 2 * depth * 4 * 20 * 21

    assert peak(32) - peak(4) <= 3.1 * activation


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
def test_passes_are_those_that_are_run(length):
    model, x = linear(length), torch.ones(10, 20)
    pass_flops = count_flops(lambda: model(x))
    gradients = torch.zeros(10, 20)
    total = count_flops(lambda: recompute_gradients(list(model), x, gradients, dropout_seed=0))
    backward = 2 * pass_flops - pass_flops / length  # nobody needs dx of the first layer
    assert total == pytest.approx(pass_flops * (1 + replayed_forwards(length)) + backward)


def test_replays_by_hand():
    # 1 link needs none; 2 replay the first; 4: 2 + 1 + 1; 7: 3 + (1) + (2 + 1 + 1) + ...
    assert [replayed_forwards(n) for n in (0, 1, 2, 4, 8)] == [0, 0, 1 / 2, 1, 3 / 2]
    assert replayed_forwards(7) == (3 + 2 + 4) / 7  # three links: 1 + 1; four: 2 + 1 + 1


def test_masks_drawn_by_a_devices_own_generator_are_replayed_too(monkeypatch):
    """On an accelerator dropout draws from that device's generator and not from the CPU's."""
    generator = torch.Generator().manual_seed(99)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))

    class DeviceDropout(nn.Module):
        def forward(self, x):
            return x * (torch.rand(x.shape, generator=generator) > 0.4)

    def links():
        with torch_seeded(0):
            pairs = [(nn.Linear(5, 5), DeviceDropout()) for _ in range(3)]
        return [layer for pair in pairs for layer in pair]

    x, gradient = torch.ones(4, 5), torch.linspace(-1, 1, 20).reshape(4, 5)
    kept, replayed = links(), links()
    before = generator.get_state()
    with torch_seeded(7):
        z = nn.Sequential(*kept)(x)
    z.backward(gradient)
    assert torch.equal(recompute_forward(replayed, x, dropout_seed=7), z)
    recompute_gradients(replayed, x, gradient, dropout_seed=7)
    assert torch.equal(generator.get_state(), before)
    for layer, again in zip(kept, replayed, strict=True):
        for parameter, other in zip(layer.parameters(), again.parameters(), strict=True):
            assert torch.equal(parameter.grad, other.grad)
    with pytest.raises(UserError, match="draws random numbers"):
        recompute_forward(replayed, x, dropout_seed=7, micro_batch=2)
