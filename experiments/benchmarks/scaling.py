"""How HO-SFL's step scales, over clients, workers, directions and parameters.

    python -m leansplit.experiments.benchmarks.scaling clients
    python -m leansplit.experiments.benchmarks.scaling --point clients=100 --point clients=300

Every point is a run in a process of its own. The processes take one step each in turn.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Annotated, Any, Final

import psutil
import typer

from leansplit.errors import RunFailedError, UserError, require_choice
from leansplit.experiments.benchmarks.turns import AfterStep, Turns, ratios
from leansplit.experiments.command_line import exit_on_errors, parse_settings
from leansplit.experiments.launch import launch
from leansplit.experiments.memory import memory_bytes, peak_bytes
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.recording import Progress

POINTS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "clients": [
        {"clients": 100, "cohort": 100},
        {"clients": 10_000, "cohort": 100},
        {"clients": 10_000, "cohort": 1_000},
    ],
    "workers": [{"workers": -1}, {"workers": 1}, {"workers": 2}],
    "directions": [{"probe.num_perturbations": p} for p in (1, 5, 25)],
    "parameters": [{"model_options.channels": [c, c]} for c in (8, 32, 128)],
}
"""What is varied -> the points; the first is what the others are compared with."""

_BASE: Final[Mapping[str, Any]] = {
    "clients": 100,
    "cohort": 100,
    "batch_size": 8,
    "probe.num_perturbations": 5,
    "client.lr": 1e-4,
    "server.lr": 1e-3,
    "clients_per_node": "auto",
    "replica_storage": "worker",
}
_DIGITS: Final = 1_437  # training images of the task
_WARM_UP: Final = 3
_NEXT_KEY: Final = r",(?=[\w.]+=)"  # lists have commas of their own
_PATIENCE_S: Final = 600.0


@dataclass(frozen=True)
class Point:
    """One run of the comparison.

    Attributes:
        keys: what sets it apart.
        config: the run.
    """

    keys: Mapping[str, Any]
    config: RunConfig

    @classmethod
    def of(cls, keys: Mapping[str, Any], common: Mapping[str, Any], steps: int) -> Point:
        """Return the point with these keys; every client holds a batch of digits at least."""
        rounds = steps + _WARM_UP
        settings = {**_BASE, **common, **keys, "rounds": rounds, "evaluate_every": rounds}
        if settings.get("task", "digits") == "digits":
            wanted = int(settings["clients"]) * int(settings["batch_size"])
            settings.setdefault("task_options.copies", -(-wanted // _DIGITS))
        return cls(keys, run_config("ho-sfl", settings))

    def __str__(self) -> str:
        """Return what sets it apart."""
        return ", ".join(f"{key}={value}" for key, value in self.keys.items())


@dataclass
class Measured:
    """What was measured of one point.

    Attributes:
        held_bytes: memory of its processes after the last step, shared pages divided among them.
        peak_bytes: the largest that each of its processes ever was, added up: no less than the
            peak of all together. Of Ray's processes, which end with the run, up to the last step;
            of the run's own also while it synchronises clients and evaluates at its end.
    """

    held_bytes: int = 0
    peak_bytes: int = 0


def take_steps(config: RunConfig, connection: Connection) -> None:
    """Run ``config``, one step whenever the other end asks for one: the body of a process.

    It answers every step, and in the end what went wrong, if anything did; then it stays until it
    hears once more.
    """
    done = 0

    def on_progress(progress: Progress) -> None:
        nonlocal done
        if progress.round > done:
            done = progress.round
            connection.send(None)
            connection.recv()

    connection.recv()
    try:
        error = launch(config, on_progress=on_progress).error
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    connection.send(error)
    with suppress(EOFError):
        connection.recv()


@contextmanager
def process_of(config: RunConfig) -> Iterator[tuple[Connection, psutil.Process]]:
    """Start the process of one run; it is ended with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=take_steps, args=(config, theirs))
    process.start()
    theirs.close()
    try:
        yield ours, psutil.Process(process.pid)
        process.join(_PATIENCE_S)
    finally:
        process.terminate()
        process.join()


def program(
    connection: Connection, process: psutil.Process, rounds: int, measured: Measured
) -> Callable[[AfterStep], None]:
    """Return the program that has another process take its steps.

    Raises (when run):
        RunFailedError: if that process fails.
    """

    def run(after_step: AfterStep) -> None:
        for _ in range(rounds):
            _ask(connection)
            after_step()
        # In a turn of its own: reading what a large process holds takes a while.
        measured.held_bytes, measured.peak_bytes = memory_bytes(process)
        so_far = peak_bytes(process.pid)
        _ask(connection)
        measured.peak_bytes += peak_bytes(process.pid) - so_far
        connection.send(None)

    return run


def _ask(connection: Connection) -> None:
    """Have the other process do the next thing, and wait until it is done.

    Raises:
        RunFailedError: if it fails, or ends.
    """
    try:
        connection.send(None)
        error = connection.recv()
    except (EOFError, OSError) as gone:
        raise RunFailedError("a process of the benchmark ended before its run did") from gone
    if error is not None:
        raise RunFailedError(error)


def compare(points: Sequence[Point]) -> tuple[list[list[float]], list[Measured]]:
    """Return the seconds of every point's steps, and what it held."""
    measured = [Measured() for _ in points]
    with ExitStack() as stack:
        programs = {}
        for number, point in enumerate(points):
            connection, process = stack.enter_context(process_of(point.config))
            programs[str(number)] = program(
                connection, process, point.config.rounds, measured[number]
            )
        seconds = Turns(programs).run()
    return list(seconds.values()), measured


def lines(
    points: Sequence[Point], seconds: Sequence[Sequence[float]], measured: Sequence[Measured]
) -> Iterator[str]:
    """Yield a line for each point: its time for a sampled client, its memory, to the first's."""
    first, first_s, first_held = points[0].config, seconds[0], measured[0]
    for point, each_s, held in zip(points, seconds, measured, strict=True):
        config = point.config
        share = first.cohort / config.cohort
        low, middle, high = (share * ratio for ratio in ratios(each_s, first_s, _WARM_UP))
        more = config.clients - first.clients
        line = (
            f"{point}: {statistics.median(each_s[_WARM_UP:]):.3f} s a step, {middle:.2f} of the "
            f"first's time for each sampled client (quartiles {low:.2f} to {high:.2f}); "
            f"{held.held_bytes / 1e6:,.0f} MB (never more than {held.peak_bytes / 1e6:,.0f})"
        )
        if more > 0:
            added = (held.held_bytes - first_held.held_bytes) / more
            line += f", {added / 1e3:.1f} KB for each client more"
        yield line


def main(
    what: Annotated[
        str | None, typer.Argument(help=f"What is varied: {', '.join(POINTS)}.")
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="A point of your own, such as clients=300,cohort=30; the first leads."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps that are measured.")] = 12,
    workers: Annotated[int, typer.Option(help="Ray workers; -1 = no Ray.")] = -1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Keys of all: KEY=VALUE.")] = None,
) -> None:
    """Print time and memory of every point, beside the first."""
    with exit_on_errors():
        if (what is None) == (point is None):
            raise UserError(f"give one of {', '.join(POINTS)}, or points of your own with --point")
        if steps < 2:
            raise UserError(f"steps must be at least 2, got {steps}")
        varied = [parse_settings(re.split(_NEXT_KEY, keys)) for keys in point or []]
        if what is not None:
            varied = [*map(dict, POINTS[require_choice("what is varied", what, POINTS)])]
        common = {"workers": workers, **parse_settings(set_)}
        points = [Point.of(keys, common, steps) for keys in varied]
        seconds, measured = compare(points)
        versions, _, hardware = collect_environment()
        named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "flwr"))
        typer.echo(f"{steps} steps; {named}, {hardware['cores']} cores of {hardware['cpu_model']}")
        for line in lines(points, seconds, measured):
            typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
