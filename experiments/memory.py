"""How much memory a simulation takes, driver and workers together, as clients are added.

    python -m leansplit.experiments.memory --clients 100 --clients 500

Each run is a process of its own; the sum of the proportional set sizes (PSS: shared pages are
divided among the processes that share them) of its whole process tree is sampled until it ends.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from typing import Annotated

import psutil
import typer

_PERIOD_S = 0.25
_MB = 1e6


def peak_memory_bytes(command: list[str]) -> int:
    """Run ``command`` and return the peak PSS of its process tree.

    Raises:
        RuntimeError: if the command fails.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        root = psutil.Process(process.pid)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _tree_bytes(root))
            time.sleep(_PERIOD_S)
        _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(stderr.decode(errors="replace")[-2000:])
    return peak


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    try:
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue  # it ended while we looked
    except psutil.NoSuchProcess:
        return total
    return total


def main(
    clients: Annotated[list[int], typer.Option(help="Populations to compare.")],
    method: Annotated[str, typer.Option(help="Method.")] = "ho-sfl",
    rounds: Annotated[int, typer.Option(help="Rounds of each run.")] = 30,
) -> None:
    """Print the peak memory for each population."""
    for population in clients:
        with tempfile.TemporaryDirectory() as out:
            code = "from leansplit.experiments.cli import main; main()"
            arguments = ["run", method, "--clients", str(population), "--rounds", str(rounds)]
            peak = peak_memory_bytes([sys.executable, "-c", code, *arguments, "--out", out])
        typer.echo(f"{method}, {population} clients: peak {peak / _MB:,.0f} MB")


if __name__ == "__main__":
    typer.run(main)
