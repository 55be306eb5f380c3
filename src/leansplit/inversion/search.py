"""Inversion by search: the input whose smashed data are those that were observed.

Minimises, over images in [0, 1],

    |f_c(x) - z|^2 / scale + w TV(x)

with Adam, w chosen on public images. The regularised search of Mahendran and Vedaldi (CVPR 2015),
as an attack on split inference by He, Zhang and Lee (ACSAC 2019). It needs the client model and
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leansplit.inversion.observation import Observer


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How hard the attacker tries."""

    steps: int = 200
    """Steps of Adam."""
    lr: float = 0.05
    """Its first learning rate, for pixels in [0, 1]; falls to zero along a line."""
    smoothness: tuple[float, ...] = (0.0, 0.01, 0.1)
    """Weights of total variation that the attacker tries on public images."""


def search_inputs(
    observer: Observer,
    observed: Tensor,
    start: Tensor,
    scale: float,
    smoothness: float,
    config: SearchConfig,
) -> Tensor:
    """Return an image for each observation, each as if it were searched alone.

    Args:
        observer: the client model.
        observed: z [n, ...].
        start: image that the search begins with [1, C, H, W].
        scale: mean squared norm of z, which makes the first term comparable at all cuts.
        smoothness: w.
        config: steps and learning rate.

    Returns:
        Images [n, C, H, W] in [0, 1].
    """
    images = start.repeat(len(observed), 1, 1, 1).requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=config.lr)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        misfit = (observer.expected(images) - observed).square().sum() / scale
        optimizer.zero_grad(set_to_none=True)
        (misfit + smoothness * _total_variation(images)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()


def chosen_smoothness(
    observer: Observer,
    images: Tensor,
    observed: Tensor,
    start: Tensor,
    scale: float,
    config: SearchConfig,
) -> float:
    """Return the weight that rebuilds public images best: the attacker knows the answer there."""
    errors = {
        weight: float(
            (search_inputs(observer, observed, start, scale, weight, config) - images)
            .square()
            .mean()
        )
        for weight in config.smoothness
    }
    return min(errors, key=lambda weight: errors[weight])


def _total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, summed over images and directions."""
    return sum(
        (images.diff(dim=axis).abs().flatten(1).mean(1).sum() for axis in (-2, -1)),
        start=images.new_zeros(()),
    )
