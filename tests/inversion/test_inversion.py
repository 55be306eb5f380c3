"""Attacks that must succeed, attacks that cannot, and what they are measured by."""

import math

import pytest
import torch
from torch import nn

from leansplit.inversion import (
    DecoderConfig,
    Observer,
    PixelRange,
    SearchConfig,
    nearest,
    search_inputs,
    similarity,
    train_decoder,
)
from leansplit.inversion.similarity import ssim


def images(count, seed=0, shape=(1, 8, 8)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def observer(layer, **mechanism):
    range_ = PixelRange(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    model = nn.Sequential(nn.Flatten(), layer).eval().requires_grad_(False)
    return Observer(model, range_, **mechanism)


def orthogonal():
    layer = nn.Linear(64, 64, bias=False)
    square = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    layer.weight = nn.Parameter(torch.linalg.qr(square).Q)
    return layer


class Constant(nn.Module):
    """Smashed data that say nothing of the input, but depend on it for autograd."""

    def forward(self, x):
        return 0 * x + 1


START = torch.full((1, 1, 8, 8), 0.5)


def test_an_invertible_layer_hides_nothing():
    sees, secret, public = observer(orthogonal()), images(4), images(400, seed=2)
    found = search_inputs(sees, sees.observe(secret, 0), START, 20.0, 0.0, SearchConfig())
    assert similarity(found, secret).mse < 1e-8
    decoder = train_decoder(sees, public, 0, DecoderConfig())
    assert similarity(decoder(sees.observe(secret, 0)), secret).mse < 0.6 / 12  # of a mean: 1 / 12


def test_a_constant_layer_gives_no_more_than_the_mean():
    sees, secret, public = observer(Constant()), images(20), images(400, seed=2)
    start = public.mean(0, keepdim=True)
    known = similarity(start.expand_as(secret), secret).mse
    found = search_inputs(sees, sees.observe(secret, 0), start, 64.0, 0.0, SearchConfig(steps=20))
    assert torch.equal(found, start.expand_as(secret))
    decoder = train_decoder(sees, public, 0, DecoderConfig(steps=50))
    assert similarity(decoder(sees.observe(secret, 0)), secret).mse > 0.99 * known


def test_images_are_searched_one_by_one_and_attacks_repeat():
    sees, secret = observer(orthogonal(), clip=2.0, noise=0.05), images(3)
    seen = sees.observe(secret, 7)
    assert torch.equal(seen, sees.observe(secret, 7))
    config = SearchConfig(steps=20)
    together = search_inputs(sees, seen, START, 4.0, 0.01, config)
    alone = search_inputs(sees, seen[1:2], START, 4.0, 0.01, config)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-3)
    decoders = [train_decoder(sees, secret, 3, DecoderConfig(steps=3)) for _ in range(2)]
    assert torch.equal(decoders[0](seen), decoders[1](seen))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 5, 7)])
def test_an_image_is_like_itself(shape):
    same = images(3, shape=shape)
    torch.testing.assert_close(ssim(same, same), torch.ones(3))
    assert similarity(same, same).psnr == math.inf
    assert torch.equal(nearest(same, same.flip(0)), same)


def test_ssim_by_hand():
    # No variance: contrast and structure are 1, luminance remains: (2 a b + C1) / (a^2 + b^2 + C1).
    dark, light = torch.full((1, 1, 16, 16), 0.25), torch.full((1, 1, 16, 16), 0.75)
    found = similarity(dark, light)
    assert found.ssim == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4))
    assert (found.mse, found.psnr) == (0.25, pytest.approx(6.0206, abs=1e-4))
    # One image and its negative around 0.5: equal means and variances, covariance -1.
    stripes = torch.tensor([0.25, 0.75]).repeat(8).expand(1, 1, 16, 16)
    assert similarity(stripes, 1 - stripes).ssim < -0.95
