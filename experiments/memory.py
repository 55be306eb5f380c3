r"""How much memory a simulation takes, driver and workers together, as clients are added.

    python -m leansplit.experiments.memory --clients 100 --clients 500
    python -m leansplit.experiments.memory --clients 10000 --rounds 10 --set cohort=1000 \
        --set clients_per_node=auto --set task_options.copies=56

Each run is a process of its own; the sum of the proportional set sizes (PSS: shared pages are
divided among the processes that share them) of its whole process tree is sampled until it ends.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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
            peak = max(peak, memory_bytes(root)[0])
            time.sleep(_PERIOD_S)
        _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(stderr.decode(errors="replace")[-2000:])
    return peak


def memory_bytes(root: psutil.Process) -> tuple[int, int]:
    """Return (PSS of a process and all below it, the sum of the most that each ever held).

    The second counts pages that processes share for each of them: it is never too little. It is 0
    where the system does not say.
    """
    held = peaks = 0
    try:
        for process in [root, *root.children(recursive=True)]:
            try:
                held += process.memory_full_info().pss
                peaks += peak_bytes(process.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue  # it ended while we looked
    except psutil.NoSuchProcess:
        pass
    return held, peaks


def peak_bytes(pid: int) -> int:
    """Return the most that a process ever held; 0 where the system does not say, or it ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def main(
    clients: Annotated[list[int], typer.Option(help="Populations to compare.")],
    method: Annotated[str, typer.Option(help="Method.")] = "ho-sfl",
    rounds: Annotated[int, typer.Option(help="Rounds of each run.")] = 30,
    set_: Annotated[list[str] | None, typer.Option("--set", help="More keys: KEY=VALUE.")] = None,
) -> None:
    """Print the peak memory for each population."""
    for population in clients:
        with tempfile.TemporaryDirectory() as out:
            code = "from leansplit.experiments.cli import main; main()"
            arguments = ["run", method, "--clients", str(population), "--rounds", str(rounds)]
            arguments += [f"--set={setting}" for setting in set_ or []]
            peak = peak_memory_bytes([sys.executable, "-c", code, *arguments, "--out", out])
        typer.echo(f"{method}, {population} clients: peak {peak / _MB:,.0f} MB")


if __name__ == "__main__":
    typer.run(main)
