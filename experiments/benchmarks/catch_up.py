"""What catching up costs, as ratios to drawing the perturbations that it needs.

python -m leansplit.experiments.benchmarks.catch_up
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer

from leansplit.errors import RunFailedError
from leansplit.experiments.benchmarks.turns import interleaved_ratios, spread
from leansplit.federated import OptimizerConfig, Replica, Update
from leansplit.noise import draw_perturbation, numpy_generator
from leansplit.server_app.environment import collect_environment
from leansplit.zeroth_order import ZerothOrderConfig, fresh_directions

_ROOT_SEED = 0


class Absence:
    """A client that missed all rounds so far, and the log of them.

    Attributes:
        seeds: that occur in the log, each once.
    """

    def __init__(self, parameters: int, rounds: int, config: ZerothOrderConfig) -> None:
        draw = numpy_generator(_ROOT_SEED)
        scalars = draw.standard_normal((rounds, config.num_perturbations), np.float32) * 1e-3
        self._weights = {"weights": torch.from_numpy(draw.standard_normal(parameters, np.float32))}
        self._config = config
        self._updates = [
            Update(t, config.shared_seeds(_ROOT_SEED, round=t), tuple(row))
            for t, row in enumerate(scalars.tolist(), start=1)
        ]
        self.seeds = list(dict.fromkeys(s for update in self._updates for s in update.seeds))
        self._ends: dict[str, str] = {}

    def draw(self) -> None:
        """Draw every perturbation that the log names, once, and nothing else."""
        for seed in self.seeds:
            draw_perturbation(seed, len(self._weights["weights"]))

    def catch_up(self) -> None:
        """Replay the log at once, as a client does."""
        replica = self._replica()
        with fresh_directions():
            replica.catch_up_(self._updates)
        self._ends["at once"] = replica.checksum

    def attend(self) -> None:
        """Take one update after the other, as a client that was never absent does."""
        replica = self._replica()
        with fresh_directions():
            for update in self._updates:
                replica.apply_(update)
        self._ends["one by one"] = replica.checksum

    def require_equal(self) -> None:
        """Raise ``RunFailedError`` unless both ways ended in the same bits."""
        if len(set(self._ends.values())) != 1:
            raise RunFailedError(f"replicas differ: {self._ends}")

    def _replica(self) -> Replica:
        return Replica(self._weights, OptimizerConfig(lr=1e-3), self._config)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds that the client missed.")] = 1_000,
    parameters: Annotated[int, typer.Option(help="d, trainable parameters.")] = 1_000_000,
    directions: Annotated[int, typer.Option(help="P, directions of a round.")] = 2,
    pool: Annotated[int, typer.Option(help="M, seeds of the pool.")] = 1_024,
    repeats: Annotated[int, typer.Option(help="Turns of the interleaved run.")] = 3,
) -> None:
    """Print minimum, median and maximum of the ratios for plain SGD and Gaussian directions."""
    torch.set_num_threads(1)
    versions, _, hardware = collect_environment()
    typer.echo(
        f"{hardware['cpu_model']}, one thread, torch {versions['torch']}, "
        f"numpy {versions['numpy']}: {rounds:,} rounds missed, {parameters:,} parameters, "
        f"{directions} directions a round"
    )
    for name, size in (("fresh seeds", 0), (f"pool of {pool:,}", pool)):
        config = ZerothOrderConfig(num_perturbations=directions, seed_pool=size)
        absence = Absence(parameters, rounds, config)
        ratios = interleaved_ratios(
            absence.draw,
            {"catch-up": absence.catch_up, "one round after the other": absence.attend},
            repeats + 1,
        )
        absence.require_equal()
        typer.echo(f"{name}: to drawing {len(absence.seeds):,} perturbations; bits are equal")
        for way, values in ratios.items():
            typer.echo(f"  {way}: {spread(values)}")


if __name__ == "__main__":
    typer.run(main)
