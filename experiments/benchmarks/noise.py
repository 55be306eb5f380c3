"""What perturbations cost: to draw, beside ``torch.randn``; to use, beside drawing them.

python -m leansplit.experiments.benchmarks.noise
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Annotated

import numpy as np
import torch
import typer

from leansplit.experiments.benchmarks.turns import interleaved_ratios, spread
from leansplit.federated import OptimizerConfig, Replica, Update
from leansplit.noise import draw_perturbation, numpy_generator
from leansplit.server_app.environment import collect_environment
from leansplit.zeroth_order import ZerothOrderConfig, perturbed, unshared_directions

_SEED = 1
_OPTIMIZERS = {
    "plain SGD": OptimizerConfig(lr=1e-3),
    "SGD with momentum": OptimizerConfig(lr=1e-3, momentum=0.9),
    "AdamW": OptimizerConfig(name="adamw", lr=1e-3),
}


def uses(parameters: int) -> dict[str, Callable[[], object]]:
    """Return name -> what one direction is used for: theta + mu u, and the step along it.

    Args:
        parameters: d.
    """
    config = ZerothOrderConfig(num_perturbations=1)
    theta = torch.from_numpy(numpy_generator(0).standard_normal(parameters, np.float32))
    rounds = count(1)

    def step(optimizer: OptimizerConfig) -> Callable[[], object]:
        replica = Replica({"weights": theta}, optimizer, config)
        return lambda: replica.apply_(Update(next(rounds), (_SEED,), (1e-3,)))

    perturb = {"perturb": lambda: perturbed(theta, config.perturbation_scale, _SEED, config)}
    return perturb | {f"update, {name}": step(each) for name, each in _OPTIMIZERS.items()}


def main(
    elements: Annotated[int, typer.Option(help="Elements of each draw.")] = 4_000_000,
    parameters: Annotated[int, typer.Option(help="d, parameters that move.")] = 10_000_000,
    repeats: Annotated[int, typer.Option(help="Turns of the interleaved run.")] = 15,
) -> None:
    """Print minimum, median and maximum of the ratios, on one thread."""
    torch.set_num_threads(1)
    versions, _, hardware = collect_environment()
    typer.echo(
        f"{hardware['cpu_model']}, one thread, torch {versions['torch']}, numpy {versions['numpy']}"
    )
    generator = torch.Generator().manual_seed(0)
    drawn = interleaved_ratios(
        lambda: torch.randn(elements, generator=generator),
        {
            "gaussian": lambda: draw_perturbation(_SEED, elements),
            "rademacher": lambda: draw_perturbation(_SEED, elements, direction="rademacher"),
        },
        repeats + 1,
    )
    typer.echo(f"{elements:,} elements, to torch.randn of as many")
    for name, values in drawn.items():
        typer.echo(f"  {name}: {spread(values)}")
    with unshared_directions():
        used = interleaved_ratios(
            lambda: draw_perturbation(_SEED, parameters), uses(parameters), repeats + 1
        )
    typer.echo(f"{parameters:,} parameters, one Gaussian direction, to drawing it")
    for name, values in used.items():
        typer.echo(f"  {name}: {spread(values)}")


if __name__ == "__main__":
    typer.run(main)
