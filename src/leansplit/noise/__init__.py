"""Seed -> perturbation: the one defined random stream."""

from leansplit.noise.secret import secret_gaussian
from leansplit.noise.seeds import (
    STREAM_VERSION,
    alignment_seed,
    auxiliary_seed,
    client_dropout_seed,
    derive_seed,
    local_perturbation_seeds,
    numpy_generator,
    perturbation_seeds,
    server_dropout_seed,
    server_perturbation_seeds,
)
from leansplit.noise.stream import (
    DIRECTIONS,
    Direction,
    blank_noise,
    draw_perturbation,
    second_moment_inverse,
)
from leansplit.noise.torch_rng import torch_seeded

__all__ = [
    "DIRECTIONS",
    "STREAM_VERSION",
    "Direction",
    "alignment_seed",
    "auxiliary_seed",
    "blank_noise",
    "client_dropout_seed",
    "derive_seed",
    "draw_perturbation",
    "local_perturbation_seeds",
    "numpy_generator",
    "perturbation_seeds",
    "second_moment_inverse",
    "secret_gaussian",
    "server_dropout_seed",
    "server_perturbation_seeds",
    "torch_seeded",
]
