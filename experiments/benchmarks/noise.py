"""What perturbations cost: to draw, beside ``torch.randn``; to use, beside drawing them.

    python -m leansplit.experiments.benchmarks.noise
    python -m leansplit.experiments.benchmarks.noise --device cuda

On a GPU a direction is added in one kernel, which is compared with copying the parameters: both
read and write them once, so the ratio is the share of a copy's bandwidth that the kernel reaches.
The parameters are many more there, so that neither caches nor starting a kernel counts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Annotated

import numpy as np
import torch
import typer

from leansplit.devices import usable_device
from leansplit.experiments.benchmarks.turns import interleaved_ratios, spread
from leansplit.experiments.command_line import exit_on_errors
from leansplit.federated import OptimizerConfig, Replica, TrainedVector, Update
from leansplit.noise import Direction, draw_perturbation, fused_kernel_for, numpy_generator
from leansplit.noise.fused import FUSED_DIRECTIONS
from leansplit.server_app.environment import collect_environment
from leansplit.zeroth_order import ZerothOrderConfig, perturbed, unshared_directions
from leansplit.zeroth_order.directions import direction_parts

_SEED = 1
_ON_THE_CPU, _ON_A_GPU = 10_000_000, 250_000_000
_D = f"by default {_ON_THE_CPU:,}, elsewhere {_ON_A_GPU:,}"
_OPTIMIZERS = {
    "plain SGD": OptimizerConfig(lr=1e-3),
    "SGD with momentum": OptimizerConfig(lr=1e-3, momentum=0.9),
    "AdamW": OptimizerConfig(name="adamw", lr=1e-3),
}


def uses(parameters: int) -> dict[str, Callable[[], object]]:
    """Return name -> what one direction is used for: theta + mu u, and the step along it.

    The first uses it for nothing: it is drawn in parts of 512 KiB, as all uses draw it, while what
    they are compared with writes the whole of it to fresh memory. The last uses none: AdamW's step
    along a gradient that is there already.

    Args:
        parameters: d.
    """
    config = ZerothOrderConfig(num_perturbations=1)
    theta = torch.from_numpy(numpy_generator(0).standard_normal(parameters, np.float32))
    rounds = count(1)

    def step(optimizer: OptimizerConfig) -> Callable[[], object]:
        replica = Replica({"weights": theta}, optimizer, config)
        return lambda: replica.apply_(Update(next(rounds), (_SEED,), (1e-3,)))

    def step_alone(optimizer: OptimizerConfig) -> Callable[[], object]:
        trained = TrainedVector({"weights": theta}, optimizer)
        gradient = draw_perturbation(_SEED, parameters)
        return lambda: trained.step_(gradient)

    def draw_in_parts() -> None:
        for _ in direction_parts(_SEED, parameters, config.direction, theta.device):
            pass

    return {
        "draw in parts": draw_in_parts,
        "perturb": lambda: perturbed(theta, config.perturbation_scale, _SEED, config),
        **{f"update, {name}": step(each) for name, each in _OPTIMIZERS.items()},
        "AdamW's step alone": step_alone(_OPTIMIZERS["AdamW"]),
    }


def beside_a_copy(parameters: int, device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Return use of a direction -> times of copying the parameters to its own.

    Args:
        parameters: d.
        device: where they are.
        repeats: turns of the interleaved run.
    """
    theta = torch.from_numpy(numpy_generator(0).standard_normal(parameters, np.float32)).to(device)
    copied = torch.empty_like(theta)

    def ended(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    def perturb(direction: Direction) -> Callable[[], object]:
        config = ZerothOrderConfig(num_perturbations=1, direction=direction)
        return ended(lambda: perturbed(theta, config.perturbation_scale, _SEED, config))

    times = interleaved_ratios(
        ended(lambda: copied.copy_(theta)),
        {f"perturb, {direction}": perturb(direction) for direction in FUSED_DIRECTIONS},
        repeats,
    )
    return {name: [1 / ratio for ratio in values] for name, values in times.items()}


def main(
    elements: Annotated[int, typer.Option(help="Elements of each draw.")] = 4_000_000,
    parameters: Annotated[int | None, typer.Option(help=f"d, parameters that move; {_D}.")] = None,
    repeats: Annotated[int, typer.Option(help="Turns of the interleaved run.")] = 15,
    device: Annotated[str, typer.Option(help="Where the parameters are: cpu, cuda.")] = "cpu",
) -> None:
    """Print minimum, median and maximum of the ratios, on one thread."""
    with exit_on_errors():
        if device != "cpu":
            _print_beside_a_copy(usable_device(device), parameters or _ON_A_GPU, repeats)
            return
    parameters = parameters or _ON_THE_CPU
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


def _print_beside_a_copy(device: torch.device, parameters: int, repeats: int) -> None:
    versions, _, _ = collect_environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    typer.echo(f"{name}, torch {versions['torch']}")
    in_one_kernel = fused_kernel_for(device, FUSED_DIRECTIONS[0]) is not None
    typer.echo(f"perturbing in {'one kernel' if in_one_kernel else 'operations of torch'}")
    typer.echo(f"{parameters:,} parameters: share of the bandwidth of a copy")
    for use, values in beside_a_copy(parameters, device, repeats + 1).items():
        typer.echo(f"  {use}: {spread(values)}")


if __name__ == "__main__":
    typer.run(main)
