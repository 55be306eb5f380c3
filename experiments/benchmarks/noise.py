"""What drawing perturbations costs, as a ratio to ``torch.randn`` in one interleaved run.

python -m leansplit.experiments.noise_benchmark
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
import typer

from leansplit.noise import draw_perturbation


def interleaved_ratios(
    baseline: Callable[[], object], others: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Time the baseline and the others in turn; return each one's ratios to the baseline."""
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(repeats):
        reference_s = _seconds(baseline)
        for name, other in others.items():
            ratios[name].append(_seconds(other) / reference_s)
    return ratios


def spread(values: Sequence[float]) -> str:
    """Return minimum, median and maximum of all but the first, which warms up."""
    counted = values[1:]
    low, high = min(counted), max(counted)
    return f"min {low:.2f}, median {statistics.median(counted):.2f}, max {high:.2f}"


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(
    elements: Annotated[int, typer.Option(help="Elements of each draw.")] = 4_000_000,
    repeats: Annotated[int, typer.Option(help="Rounds of the interleaved run.")] = 15,
) -> None:
    """Print minimum, median and maximum of the ratios, on one thread."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ratios = interleaved_ratios(
        lambda: torch.randn(elements, generator=generator),
        {
            "gaussian": lambda: draw_perturbation(1, elements),
            "rademacher": lambda: draw_perturbation(1, elements, direction="rademacher"),
        },
        repeats + 1,
    )
    typer.echo(f"torch {torch.__version__}, one thread, {elements:,} elements, to torch.randn")
    for name, values in ratios.items():
        typer.echo(f"{name}: {spread(values)}")


if __name__ == "__main__":
    typer.run(main)
