"""How alike two sets of images are: MSE, PSNR and SSIM, for values in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Similarity:
    """Means over images.

    Attributes:
        mse: of all pixels, 0 = equal.
        psnr: 10 log10(1 / mse) in dB; infinite for equal images.
        ssim: structural similarity, 1 = equal; see :func:`ssim`.
    """

    mse: float
    psnr: float
    ssim: float


def similarity(images: Tensor, references: Tensor) -> Similarity:
    """Compare images [n, C, H, W] in [0, 1], one by one; computed in float64."""
    images, references = images.double(), references.double()
    mse = float((images - references).square().mean())
    psnr = -10 * math.log10(mse) if mse else math.inf
    return Similarity(mse, psnr, float(ssim(images, references).mean()))


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Return the structural similarity of each pair (Wang et al., IEEE TIP 13(4), 2004).

    Equation 13 with the authors' constants K1 = 0.01 and K2 = 0.03, moments under a Gaussian window
    of 11 x 11 with standard deviation 1.5, averaged over all places where the window lies inside
    the image, and over channels. Images smaller than the window take the largest odd one that fits.

    Args:
        images: [n, C, H, W] in [0, 1].
        references: the same shape.

    Returns:
        [n], in [-1, 1].
    """
    n, channels, height, width = images.shape
    size = min(_WINDOW, height - 1 + height % 2, width - 1 + width % 2)
    offsets = torch.arange(size, dtype=images.dtype, device=images.device) - (size - 1) / 2
    line = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(values.reshape(n * channels, 1, height, width), window)

    mean_x, mean_y = smooth(images), smooth(references)
    var_x = smooth(images.square()) - mean_x.square()
    var_y = smooth(references.square()) - mean_y.square()
    covariance = smooth(images * references) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    different = (mean_x.square() + mean_y.square() + _C1) * (var_x + var_y + _C2)
    return (alike / different).reshape(n, -1).mean(1)


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Return for each image the one of ``others`` with the smallest MSE."""
    distances = torch.cdist(images.flatten(1).double(), others.flatten(1).double())
    return others[distances.argmin(1)]
