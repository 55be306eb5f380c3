"""Clipped Gaussian noise on what a client uploads (docs/audit.md).

One sample's smashed data, or one client's scalars, is a row x. What crosses is

    x' = x min(1, C / |x|) + N(0, sigma^2 C^2 I)

so no two rows can be further apart than 2 C before the noise: the Gaussian mechanism, applied
before anything leaves the client. That holds of every row: what is not a number counts as 0, and
what is infinite, or beyond float32, as the largest number of float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from leansplit.errors import UserError
from leansplit.noise import draw_perturbation, secret_gaussian

_LARGEST = torch.finfo(torch.float32).max
"""Its square is finite in float64, and so is the norm of any row."""


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What clients do to smashed data and scalars before they upload them."""

    clip: float = 0.0
    """C, the largest L2 norm of one sample's smashed data: longer ones are scaled down to it. 0 =
    smashed data go up as they are."""
    noise: float = 0.0
    """sigma: Gaussian noise on every element of smashed data, of standard deviation sigma C."""
    scalar_clip: float = 0.0
    """The largest L2 norm of the P scalars of a client's answer; 0 = as they are."""
    scalar_noise: float = 0.0
    """sigma of the scalars; their noise has the standard deviation sigma times ``scalar_clip``."""
    reproducible: bool = False
    """Draw the noise from the root seed, which everybody knows: for simulations that must repeat,
    and no protection at all. Otherwise it comes from the client's operating system."""
    delta: float = 1e-5
    """The delta at which epsilon is reported; it changes nothing else."""

    def __post_init__(self) -> None:
        """Refuse what is no mechanism."""
        for clip, noise in (("clip", "noise"), ("scalar_clip", "scalar_noise")):
            for name in (clip, noise):
                value = getattr(self, name)
                if not (math.isfinite(value) and value >= 0):
                    raise UserError(f"{name} must be a finite number from 0, got {value}")
            if getattr(self, noise) and not getattr(self, clip):
                raise UserError(f"{noise} is relative to {clip}, which is not set; set both")
        if not 0 < self.delta < 1:
            raise UserError(f"delta must be above 0 and below 1, got {self.delta}")

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return self.clip > 0 or self.scalar_clip > 0

    @property
    def is_secret(self) -> bool:
        """Whether smashed data as they were must not leave a client, in whatever form."""
        return self.is_on and not self.reproducible

    def require_repeatable(self) -> None:
        """Refuse checkpoints of a run that keeps smashed data secret.

        Raises:
            UserError: if it does.
        """
        if self.is_secret:
            raise UserError(
                "checkpoints hold what clients remember, smashed data without noise included, and "
                "rounds that a resumed run repeats are uploaded twice; leave out privacy.… or the "
                "checkpoints, or set privacy.reproducible for a simulation"
            )


def clipped(rows: Tensor, clip: float, noise: float = 0.0, seed: int | None = None) -> Tensor:
    """Return rows of bounded norm, with noise; differentiable.

    Args:
        rows: [B, ...]; one row is what is protected.
        clip: C; 0 leaves everything as it is, and adds no noise.
        noise: sigma.
        seed: of the noise stream; None = the operating system's randomness.

    Returns:
        The same shape, type and device; computed in float64.
    """
    if not clip:
        return rows
    wide = rows.double().flatten(1).nan_to_num(nan=0.0).clamp(-_LARGEST, _LARGEST)
    norms: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    wide = wide * (clip / norms.clamp(min=clip))  # C / |x| has no gradient at a row of zeros
    if noise:
        size = wide.numel()
        drawn = secret_gaussian(size) if seed is None else draw_perturbation(seed, size)
        wide = wide + noise * clip * drawn.to(wide).view_as(wide)
    return wide.view(rows.shape).to(rows.dtype)


def clipped_smashed_data(
    smashed_data: Tensor, clip: float, noise: float, seed: int | None, *, has_mask: bool = False
) -> Tensor:
    """Return z as :func:`clipped`, an attention mask in it untouched (it says where padding is).

    Padding counts as 0: what a model makes of it depends on how a batch was run, and would take
    its share of the norm from the tokens.
    """
    if not (has_mask and clip):
        return clipped(smashed_data, clip, noise, seed)
    mask = smashed_data[..., -1:]
    hidden_states = smashed_data[..., :-1].masked_fill(mask == 0, 0.0)
    return torch.cat([clipped(hidden_states, clip, noise, seed), mask], dim=-1)
