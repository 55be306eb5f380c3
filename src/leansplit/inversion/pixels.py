"""Model inputs as images with values in [0, 1], which is what attacks and measures work on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PixelRange:
    """The values that inputs take, channel by channel.

    Attributes:
        lowest: shape [1, C, 1, 1].
        highest: the same shape, nowhere below ``lowest``.
    """

    lowest: Tensor
    highest: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> PixelRange:
        """Return the range of inputs [n, C, H, W]."""
        axes = (0, 2, 3)
        return cls(inputs.amin(axes, keepdim=True), inputs.amax(axes, keepdim=True))

    def images(self, inputs: Tensor) -> Tensor:
        """Return inputs [n, C, H, W] as images; what lies outside of the range is cut off."""
        width = (self.highest - self.lowest).clamp(min=1e-12)
        return ((inputs - self.lowest) / width).clamp(0, 1)

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the model takes for images in [0, 1]."""
        return self.lowest + images * (self.highest - self.lowest)
