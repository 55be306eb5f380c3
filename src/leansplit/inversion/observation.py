"""What a server observes of images: smashed data, clipped and noised as the clients were told."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from leansplit.federated import clipped
from leansplit.inversion.pixels import PixelRange
from leansplit.micro_batches import run_in_parts


@dataclass(frozen=True)
class Observer:
    """A client model as the server knows it, with the mechanism that its output goes through.

    Attributes:
        client_model: in evaluation mode; its parameters are known.
        pixels: range of its inputs.
        clip: C; 0 = neither clipped nor noised.
        noise: sigma.
    """

    client_model: nn.Module
    pixels: PixelRange
    clip: float = 0.0
    noise: float = 0.0

    def expected(self, images: Tensor) -> Tensor:
        """Return z for images [n, C, H, W] in [0, 1], clipped, without noise; differentiable."""
        return clipped(self.client_model(self.pixels.inputs(images)), self.clip)

    def observe(self, images: Tensor, seed: int) -> Tensor:
        """Return z as it is uploaded; ``seed`` decides the noise."""
        return self.noised(self.smashed_data(images), seed)

    def smashed_data(self, images: Tensor, batch_size: int = 250) -> Tensor:
        """Return z before anything is done to it."""
        with torch.no_grad():
            return run_in_parts(
                lambda part: self.client_model(self.pixels.inputs(part)), images, batch_size
            )

    def noised(self, smashed_data: Tensor, seed: int) -> Tensor:
        """Return what is uploaded in place of z."""
        return clipped(smashed_data, self.clip, self.noise, seed)

    def with_noise(self, noise: float, clip: float) -> Observer:
        """Return the observer of the same model under another mechanism; 0 = no noise, no clip."""
        return replace(self, noise=noise, clip=clip if noise else 0.0)
