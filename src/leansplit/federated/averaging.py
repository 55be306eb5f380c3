"""Averages in a fixed order and in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def sample_weights(num_samples: Sequence[int]) -> list[float]:
    """Return each client's share of the samples; the shares sum to 1."""
    total = sum(num_samples)
    return [n / total for n in num_samples]


def mean_scalars(scalars: Sequence[Tensor], weights: Sequence[float]) -> tuple[float, ...]:
    """Return the weighted mean of the clients' directional differences.

    Args:
        scalars: v_m for each client in ascending order of ids, float32 of shape [P].
        weights: each client's share; the shares sum to 1.

    Returns:
        P numbers, summed in float64 and rounded to float32, as they cross the wire.
    """
    mean = torch.zeros(len(scalars[0]), dtype=torch.float64)
    for weight, v in zip(weights, scalars, strict=True):
        mean += weight * v.double()
    return tuple(mean.float().tolist())


def weighted_mean(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Return the weighted mean of named tensors, summed in the order given.

    Floating-point tensors are summed in float64 and rounded once; integer tensors (step
    counters) are the same everywhere and are taken from the first.
    """
    mean: dict[str, Tensor] = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            mean[name] = first.clone()
            continue
        total = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            total += weight * state[name].double()
        mean[name] = total.to(first.dtype)
    return mean


def moved_towards_mean(
    start: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    learning_rate: float,
) -> dict[str, Tensor]:
    """Return ``start`` + ``learning_rate`` * (weighted mean of ``states`` - ``start``).

    The global step of methods that do not go all the way to the mean (MU-SplitFed's eta_g);
    a rate of 1 gives :func:`weighted_mean` bit for bit. Computed in float64 in the order given,
    as (1 - rate) * start + rate * mean, and rounded once.
    """
    moved: dict[str, Tensor] = {}
    for name, first in start.items():
        mean = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            mean += weight * state[name].double()
        moved[name] = ((1 - learning_rate) * first.double() + learning_rate * mean).to(first.dtype)
    return moved
