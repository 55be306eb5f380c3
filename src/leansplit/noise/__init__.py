"""Seed -> perturbation: the one defined random stream."""

from leansplit.noise.seeds import (
    STREAM_VERSION,
    client_dropout_seed,
    derive_seed,
    numpy_generator,
    perturbation_seeds,
    server_dropout_seed,
    server_perturbation_seeds,
)
from leansplit.noise.stream import DIRECTIONS, Direction, draw_perturbation
from leansplit.noise.torch_rng import torch_seeded

__all__ = [
    "DIRECTIONS",
    "STREAM_VERSION",
    "Direction",
    "client_dropout_seed",
    "derive_seed",
    "draw_perturbation",
    "numpy_generator",
    "perturbation_seeds",
    "server_dropout_seed",
    "server_perturbation_seeds",
    "torch_seeded",
]
