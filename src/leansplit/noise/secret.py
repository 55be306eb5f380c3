"""Gaussian noise that nobody can draw again: from the operating system's randomness.

The stream (:mod:`leansplit.noise.stream`) follows from seeds that everybody knows, and its values
end at 5.77, where a Gaussian has tails that matter to small delta. Here 53 bits make the radius, so
values reach 8.57.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

_UNIT = 2.0**-53


def secret_gaussian(num_elements: int) -> Tensor:
    """Return independent standard Gaussians, float64 [num_elements], by Box and Muller (1958)."""
    pairs = (num_elements + 1) // 2
    words = np.frombuffer(os.urandom(16 * pairs), np.uint64) >> np.uint64(11)
    radius, turn = (words.astype(np.float64) * _UNIT).reshape(2, pairs)
    length, angle = np.sqrt(-2 * np.log(radius + _UNIT)), 2 * np.pi * turn
    drawn = np.concatenate([length * np.cos(angle), length * np.sin(angle)])
    return torch.from_numpy(drawn[:num_elements])
