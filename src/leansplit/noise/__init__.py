"""Seed -> perturbation: the one defined random stream."""

from leansplit.noise.fused import fused_kernel_for
from leansplit.noise.philox import first_uniforms
from leansplit.noise.secret import secret_gaussian
from leansplit.noise.seeds import (
    NO_INDEX,
    STREAM_VERSION,
    alignment_seed,
    auxiliary_seed,
    client_dropout_seed,
    derive_seed,
    local_perturbation_seeds,
    numpy_generator,
    perturbation_seeds,
    pooled_perturbation_seeds,
    seed_pool,
    server_dropout_seed,
    server_perturbation_seeds,
)
from leansplit.noise.stream import (
    DIRECTIONS,
    Direction,
    blank_noise,
    draw_perturbation,
    draw_perturbations,
    second_moment_inverse,
    unfilled_vector,
)
from leansplit.noise.torch_rng import torch_seeded

__all__ = [
    "DIRECTIONS",
    "NO_INDEX",
    "STREAM_VERSION",
    "Direction",
    "alignment_seed",
    "auxiliary_seed",
    "blank_noise",
    "client_dropout_seed",
    "derive_seed",
    "draw_perturbation",
    "draw_perturbations",
    "first_uniforms",
    "fused_kernel_for",
    "local_perturbation_seeds",
    "numpy_generator",
    "perturbation_seeds",
    "pooled_perturbation_seeds",
    "second_moment_inverse",
    "secret_gaussian",
    "seed_pool",
    "server_dropout_seed",
    "server_perturbation_seeds",
    "torch_seeded",
    "unfilled_vector",
]
