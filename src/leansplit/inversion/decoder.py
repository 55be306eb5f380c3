"""Inversion by a learned decoder: a network from smashed data to images, trained on public ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leansplit.inversion.observation import Observer
from leansplit.noise import derive_seed, numpy_generator, torch_seeded

_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """How hard the attacker trains."""

    steps: int = 500
    """Steps of Adam."""
    batch_size: int = 32
    lr: float = 3e-3
    """Its first learning rate; falls to zero along a line."""


def train_decoder(
    observer: Observer, images: Tensor, seed: int, config: DecoderConfig
) -> nn.Module:
    """Return a decoder for what ``observer`` sees.

    Args:
        observer: makes the training data; its noise is new at every step.
        images: public ones [n, C, H, W] in [0, 1].
        seed: root of initial weights, batches and noise.
        config: steps, batch size, learning rate.
    """
    smashed = observer.smashed_data(images)
    first = observer.noised(smashed, derive_seed(seed, "decoder-noise"))
    with torch_seeded(derive_seed(seed, "decoder")):
        decoder = _decoder(smashed.shape[1:], images.shape[1:])
    body = nn.Sequential(_Standardised(float(first.mean()), float(first.std())), decoder)
    optimizer = torch.optim.Adam(body.parameters(), lr=config.lr)
    batches = numpy_generator(derive_seed(seed, "decoder-batches"))
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        size = min(config.batch_size, len(images))
        chosen = torch.from_numpy(batches.permutation(len(images))[:size])
        noise_seed = derive_seed(seed, "decoder-noise", local_step=step)
        error = body(observer.noised(smashed[chosen], noise_seed)) - images[chosen]
        optimizer.zero_grad(set_to_none=True)
        error.square().mean().backward()
        optimizer.step()
    return nn.Sequential(body, nn.Hardtanh(0.0, 1.0)).eval().requires_grad_(False)


class _Standardised(nn.Module):
    """Smashed data by the mean and deviation of public ones, which a constant layer has none of."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation or 1.0

    def forward(self, smashed_data: Tensor) -> Tensor:
        return (smashed_data - self.mean) / self.deviation


def _decoder(smashed_shape: torch.Size, image_shape: torch.Size) -> nn.Module:
    """Return convolutions that double height and width until the image's are reached."""
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    if len(smashed_shape) == 3:
        inner, h, w = smashed_shape
    else:
        inner, h, w = _WIDTH, -(-height // 4), -(-width // 4)
        layers += [nn.Flatten(), nn.Linear(smashed_shape.numel(), inner * h * w)]
        layers += [nn.ReLU(), nn.Unflatten(1, (inner, h, w))]
    layers += [nn.Conv2d(inner, _WIDTH, 3, padding=1), nn.ReLU()]
    while 2 * h < height or 2 * w < width:
        h, w = 2 * h, 2 * w
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.ReLU()]
    factor = 1 if (h, w) == (height, width) else 2  # the last doubling is cheap: by its channels
    layers += [nn.Conv2d(_WIDTH, channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((height, width)))
