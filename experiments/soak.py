"""A long run with faults, and the memory of its processes on the way: it must not grow.

    python -m leansplit.experiments.soak --rounds 2000 --workers -1
    python -m leansplit.experiments.soak --rounds 2000 --workers 1 --faults drop=0.1,late=0.05

ends with 1 if the memory of the driver, or of the workers, grows by the limit or more over the last
half of the rounds, or if the run does not come to its end. What is measured is the unique set size:
the memory that a process would give back if it ended, pages shared with others left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.command_line import parse_faults
from leansplit.experiments.launch import launch
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.recording import Outcome, Progress

_SAMPLES = 200  # of a run
_FEWEST = 10  # of the last half: a line through fewer says nothing
_WORKER = "ray::ClientAppActor"
_MB = 1e6
FAULTS = "drop=0.1,late=0.05,die=0.02"
GROUPS = {
    "driver": "the command's own process, with the clients in it if workers = -1",
    "workers": "mean of the worker processes",
    "engine": "Ray's own processes, all together; not judged",
}


@dataclass
class Soak:
    """Memory of a run's processes, as it goes on.

    Attributes:
        every: rounds between samples.
        rows: one for each sample: ``round`` and bytes of each of ``GROUPS``.
    """

    every: int
    rows: list[dict[str, float]] = field(default_factory=list)

    def on_progress(self, progress: Progress) -> None:
        """Take a sample if one is due."""
        last = self.rows[-1]["round"] if self.rows else 0
        if progress.round >= last + self.every:
            self.rows.append({"round": progress.round, **memory_bytes()})

    def growth(self, group: str, rounds: int) -> float:
        """Return by which share of itself a group grew over the last half of the rounds.

        By a line of least squares, so that single samples weigh little. Workers that were just
        replaced have less.

        Raises:
            RunFailedError: if there are too few samples to say.
        """
        table = pd.DataFrame(self.rows, columns=["round", *GROUPS]).dropna(subset=[group])
        late = table[table["round"] > rounds / 2]
        if len(late) < _FEWEST:
            raise RunFailedError(
                f"{len(late)} samples of the {group} in the last half say nothing; {_FEWEST} are "
                "needed: take more rounds"
            )
        slope, start = np.polyfit(late["round"] - rounds / 2, late[group], 1)
        return float(slope * (rounds / 2) / start)


def memory_bytes() -> dict[str, float]:
    """Return the unique set size of each group of processes; nan for a group without any."""
    driver = psutil.Process()
    workers, engine = [], 0
    for process in driver.children(recursive=True):
        with suppress(psutil.Error):  # it ended while we looked
            size = process.memory_full_info().uss
            if any(_WORKER in part for part in process.cmdline()):
                workers.append(size)
            else:
                engine += size
    mean = float(np.mean(workers)) if workers else float("nan")
    own = float(driver.memory_full_info().uss)
    return {"driver": own, "workers": mean, "engine": float(engine or "nan")}


def configuration(
    rounds: int, workers: int, clients: int, cohort: int, faults: str = FAULTS
) -> RunConfig:
    """Return HO-SFL on digits, with faults as ``--faults`` takes them."""
    return run_config(
        "ho-sfl",
        {
            "task": "digits",
            "clients": clients,
            "cohort": cohort,
            "rounds": rounds,
            "evaluate_every": max(1, rounds // 10),
            "workers": workers,
            "replica_storage": "worker",
            "quorum_rounds": 100,  # one worker that is being replaced is everybody
            "client.name": "adamw",
        }
        | parse_faults(faults),
    )


def soak(
    config: RunConfig,
    limit: float,
    say: Callable[[str], None],
    run: Callable[..., Outcome] = launch,
    out: Path | None = None,
) -> Soak:
    """Run, and hold memory to the limit.

    Args:
        config: what is run.
        limit: share by which a group must not grow.
        say: told what was found.
        out: a csv file for the samples, whatever they come to.
        run: starts the run.

    Raises:
        RunFailedError: if the run does not come to its end, or memory grows by ``limit`` or more.
    """
    found = Soak(every=max(1, config.rounds // _SAMPLES))
    try:
        outcome = run(config, on_progress=found.on_progress)
    finally:
        if out:
            pd.DataFrame(found.rows, columns=["round", *GROUPS]).to_csv(out, index=False)
    if outcome.status != "completed":
        raise RunFailedError(f"the run is {outcome.status}: {outcome.error}")
    say(f"{outcome.rounds_completed} rounds, {outcome.num_exchanges} exchanges; {outcome.events}")
    grown = []
    for group in GROUPS:
        sizes = [row[group] / _MB for row in found.rows if not np.isnan(row[group])]
        if not sizes or (group == "engine" and len(sizes) < len(found.rows)):
            continue  # none of them, or not all the time
        growth, half = found.growth(group, config.rounds), len(sizes) // 2
        say(
            f"{group}: {sizes[0]:.1f} MB first, {sizes[half]:.1f} half way, {sizes[-1]:.1f} last; "
            f"{growth:+.2%} over the last half"
        )
        if growth >= limit and group != "engine":
            grown.append(group)
    if grown:
        raise RunFailedError(
            f"the memory of {' and '.join(grown)} grew by {limit:.0%} or more over the last half"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command, and return 0 if memory is flat, 1 if not, 2 for a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000, help="rounds (default: 2000)")
    parser.add_argument("--workers", type=int, default=-1, help="Ray workers (default: -1, no Ray)")
    parser.add_argument("--clients", type=int, default=100, help="clients (default: 100)")
    parser.add_argument("--cohort", type=int, default=10, help="of a round (default: 10)")
    parser.add_argument("--faults", default=FAULTS, help=f"rates (default: {FAULTS})")
    parser.add_argument("--limit", type=float, default=0.05, help="share (default: 0.05)")
    parser.add_argument("--out", type=Path, help="a csv file for all samples")
    given = parser.parse_args(arguments)
    try:
        config = configuration(
            given.rounds, given.workers, given.clients, given.cohort, given.faults
        )
        soak(config, given.limit, lambda line: print(line, flush=True), out=given.out)
    except (UserError, RunFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
