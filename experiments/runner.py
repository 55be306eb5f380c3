"""How runs are made: as a federation on Flower, or by the methods' plain loops on one device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from leansplit.devices import usable_device
from leansplit.experiments.launch import launch
from leansplit.server_app.checkpoints import Checkpoints
from leansplit.server_app.config import RunConfig
from leansplit.server_app.interruption import stop_on_interrupt
from leansplit.server_app.plain_execution import execute_plain
from leansplit.server_app.recording import Outcome, Progress
from leansplit.server_app.results import Engine, RunResult


@dataclass(frozen=True)
class Runner:
    """Who makes a run, and where."""

    engine: Engine = "flower"
    device: str = "cpu"
    """Of the plain loops; where Flower's clients compute is a key of the run, ``client_device``."""

    def run(
        self,
        config: RunConfig,
        *,
        stop: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Outcome:
        """Run ``config``; the rest as in :func:`leansplit.experiments.launch.launch`.

        Plain loops leave no checkpoints and go on from none.
        """
        if self.engine == "flower":
            return launch(config, stop=stop, on_progress=on_progress, checkpoints=checkpoints)
        stop = stop or threading.Event()
        with stop_on_interrupt(stop):
            return execute_plain(
                config, device=usable_device(self.device), stop=stop, on_progress=on_progress
            )

    @classmethod
    def of(cls, result: RunResult) -> Runner:
        """Return who made a result."""
        return cls(result.engine, result.device) if result.engine == "plain" else cls()

    def __str__(self) -> str:
        """Return what a reader calls it."""
        return "Flower" if self.engine == "flower" else f"plain loops on {self.device}"


FLOWER = Runner()


def plain_loops(device: str) -> Runner:
    """Return the runner of plain loops on ``device``.

    Raises:
        UserError: if there is no such device here.
    """
    return Runner("plain", str(usable_device(device)))
