"""Two-point zeroth-order gradient estimators behind one interface.

Forward difference:  v_p = F(theta + mu u_p) - F(theta),            g = 1/(P mu)   sum_p v_p u_p
Central difference:  v_p = F(theta + mu u_p) - F(theta - mu u_p),   g = 1/(2 P mu) sum_p v_p u_p

with E[u u^T] = I, so no factor d appears; Gaussian directions combined with a factor d are d
times too long. Only ``unit_sphere`` has E[u u^T] = I / d, and its estimates are multiplied by d.
Parameters are never written: theta + mu u - mu u is not theta in floating point,
so each probe works on its own perturbed copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from leansplit.allocation import allocated_as
from leansplit.errors import UserError, require_choice, require_positive
from leansplit.noise import (
    DIRECTIONS,
    NO_INDEX,
    Direction,
    fused_kernel_for,
    perturbation_seeds,
    pooled_perturbation_seeds,
    second_moment_inverse,
    seed_pool,
    unfilled_vector,
)
from leansplit.parameters import ParameterDict, ParameterSpec
from leansplit.telling import all_alike
from leansplit.zeroth_order.directions import direction_parts
from leansplit.zeroth_order.objective import Objective

Estimator = Literal["forward", "central"]
ESTIMATORS: Final[tuple[str, ...]] = get_args(Estimator)
LARGEST_SEED_POOL: Final = 65_536
"""A place in it takes two bytes."""


@dataclass(frozen=True, kw_only=True)
class ZerothOrderConfig:
    """How a client estimates a gradient from forward passes."""

    num_perturbations: int = 5
    """P, directions per estimate."""
    perturbation_scale: float = 1e-3
    """mu, the finite-difference step."""
    estimator: Estimator = "forward"
    """``forward`` costs P + 1 forward passes (the anchor included), ``central`` 2 P."""
    direction: Direction = "gaussian"
    """``gaussian``, ``rademacher`` and ``sphere`` (radius sqrt(d)) have E[u u^T] = I.
    ``unit_sphere``: radius 1, and the estimate is multiplied by d; mu is then a step's length."""
    seed_pool: int = 0
    """M, seeds that all rounds draw their directions from, as in FedKSeed (docs/catch-up.md); for
    methods whose clients share directions. 0: fresh ones for every step."""

    def __post_init__(self) -> None:
        """Refuse values that no estimate can be made with."""
        count = self.num_perturbations
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(
                f"num_perturbations (P) must be a whole number of at least 1, got {count!r}"
            )
        require_positive("perturbation_scale (mu)", self.perturbation_scale)
        require_choice("estimator", self.estimator, ESTIMATORS)
        require_choice("direction", self.direction, DIRECTIONS)
        if self.seed_pool and not count <= self.seed_pool <= LARGEST_SEED_POOL:
            raise UserError(
                f"seed_pool must be 0, or hold at least num_perturbations = {count} and at most "
                f"{LARGEST_SEED_POOL} seeds, got {self.seed_pool}"
            )

    def pool(self, root_seed: int) -> tuple[int, ...]:
        """Return the seeds that shared directions are drawn from; empty = fresh ones each step."""
        return seed_pool(root_seed, self.seed_pool) if self.seed_pool else ()

    def shared_seeds(
        self, root_seed: int, *, round: int, local_step: int = NO_INDEX
    ) -> tuple[int, ...]:
        """Return the seeds of the P directions that all clients share in a step."""
        indices = {"round": round, "local_step": local_step}
        if self.seed_pool:
            return pooled_perturbation_seeds(
                root_seed, self.num_perturbations, self.seed_pool, **indices
            )
        return perturbation_seeds(root_seed, self.num_perturbations, **indices)

    @property
    def num_forwards(self) -> int:
        """Forward passes per estimate, the anchor included."""
        p = self.num_perturbations
        return p + 1 if self.estimator == "forward" else 2 * p

    def slope(self, difference: float) -> float:
        """Return the slope along one direction from its un-normalised difference v_p."""
        return difference / (self.width * self.perturbation_scale)

    @property
    def width(self) -> float:
        """How many mu lie between the two points of a difference."""
        return 1.0 if self.estimator == "forward" else 2.0


def probe(
    objective: Objective,
    spec: ParameterSpec,
    vector: Tensor,
    seeds: Sequence[int],
    config: ZerothOrderConfig,
    *,
    anchor: float | None = None,
) -> Tensor:
    """Return the un-normalised directional differences v_p, one for each seed.

    Args:
        objective: F, evaluated under inference mode only.
        spec: layout of the parameters.
        vector: theta, shape [d]; not written.
        seeds: one perturbation seed for each direction.
        config: estimator, mu and distribution.
        anchor: F at ``vector`` if the caller has it already (HO-SFL's clients kept their smashed
            data); saves the forward estimator one pass.

    Returns:
        float64 tensor of shape [P].
    """

    def evaluate(parameters: ParameterDict) -> list[float]:
        return [objective.evaluate(parameters)]

    anchors = None if anchor is None else [anchor]
    return probe_each(evaluate, spec, vector, seeds, config, anchors=anchors)[0]


def probe_each(
    evaluate: Callable[[ParameterDict], Sequence[float]],
    spec: ParameterSpec,
    vector: Tensor,
    seeds: Sequence[int],
    config: ZerothOrderConfig,
    *,
    anchors: Sequence[float] | None = None,
) -> Tensor:
    """Return the differences of several functions of the same parameters, float64 [n, P].

    As :func:`probe` does for each of them, with every direction drawn once.

    Args:
        evaluate: parameters -> (F_1, ..., F_n) there.
        spec: layout of the parameters.
        vector: theta, shape [d]; not written.
        seeds: one perturbation seed for each direction.
        config: estimator, mu and distribution.
        anchors: F_1 to F_n at ``vector`` if they are there already.
    """

    def around(scale: float, seed: int) -> Sequence[float]:
        return evaluate(spec.views(perturbed(vector, scale, seed, config)))

    mu = config.perturbation_scale
    if config.estimator == "forward" and anchors is None:
        anchors = evaluate(spec.views(vector))
    rows: list[list[float]] = []
    for seed in all_alike(seeds):
        plus = around(mu, seed)
        minus = anchors if config.estimator == "forward" else around(-mu, seed)
        assert minus is not None
        rows.append([above - below for above, below in zip(plus, minus, strict=True)])
    rows += rows[-1:] * (len(seeds) - len(rows))  # where `all_alike` goes through some only
    return torch.tensor(rows, dtype=torch.float64).T.contiguous()


def perturbed(vector: Tensor, scale: float, seed: int, config: ZerothOrderConfig) -> Tensor:
    """Return theta + scale u in new memory, shape [d]; ``scale`` is mu or -mu.

    Beside theta and the result, 4 d bytes, it holds one part of u, and nothing where a device adds
    it in one kernel (:mod:`leansplit.noise.fused`); see :func:`estimate`.
    """
    with allocated_as("perturbation"):
        if add_scaled := fused_kernel_for(vector.device, config.direction):
            return add_scaled(vector, (seed,), (scale,), config.direction)
        moved = unfilled_vector(vector.numel(), vector.device)
        for part, u in direction_parts(seed, vector.numel(), config.direction, vector.device):
            torch.mul(u, scale, out=moved[part]).add_(vector[part])
    return moved


def estimate(
    spec: ParameterSpec,
    seeds: Sequence[int],
    differences: Tensor,
    config: ZerothOrderConfig,
    *,
    device: torch.device | str,
) -> Tensor:
    """Rebuild the gradient estimate from seeds and scalars.

    Anyone who holds the same seeds and the same scalars gets the same bits: directions are added
    in the order given, with one rounding for each product and each sum.

    Memory: the estimate itself, 4 d bytes, and at most 1 MiB for a part of one direction and its
    product, whatever d and P. Spheres, whose norm is summed first, hold up to 16 d bytes more.
    Directions that a process keeps for its many clients (:func:`.draw_direction`) come on top.

    Args:
        spec: layout of the parameters.
        seeds: P perturbation seeds.
        differences: P un-normalised differences v_p.
        config: the configuration that the differences were probed with.
        device: where the estimate is wanted: that of the parameters that take it.

    Returns:
        float32 tensor of shape [d].
    """
    with allocated_as("gradients"):
        gradient = unfilled_vector(spec.num_elements, device).zero_()
    factors = coefficients(differences.tolist(), spec.num_elements, config)
    if add_scaled := fused_kernel_for(gradient.device, config.direction):
        return add_scaled(gradient, seeds, factors, config.direction)
    for seed, factor in all_alike([*zip(seeds, factors, strict=True)]):
        with allocated_as("perturbation"):
            for part, u in direction_parts(seed, spec.num_elements, config.direction, device):
                gradient[part].add_(factor * u)
    return gradient


def coefficients(
    differences: Sequence[float], num_elements: int, config: ZerothOrderConfig
) -> list[float]:
    """Return what :func:`estimate` multiplies each of its directions by before it adds them."""
    inverse = second_moment_inverse(config.direction, num_elements)
    whole_width = config.width * len(differences) * config.perturbation_scale
    return [inverse * (difference / whole_width) for difference in differences]
