r"""Where the time of leansplit's step goes: samples of the stack, sorted by whose work they are.

    python -m leansplit.experiments.benchmarks.profile digits
    python -m leansplit.experiments.benchmarks.profile digits --set clients=10000 \
        --set cohort=1000 --set task_options.copies=56

A step runs as it always does; nothing is counted by call, which would make many small calls look
dear. Everything is in one process, without Ray.
"""

from __future__ import annotations

import functools
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from types import FrameType
from typing import Annotated, Final

import typer

from leansplit.errors import RunFailedError, UserError, require_choice
from leansplit.experiments.benchmarks.engine import CASES, WARM_UP, environment, step_settings
from leansplit.experiments.command_line import exit_on_errors, parse_settings
from leansplit.experiments.launch import IN_PROCESS, launch
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.recording import Outcome, Progress

_PERIOD_S = 0.001
_PASSES, _PRODUCTS = "clients: forward passes", "clients: inner products"
_DRAWING, _MOVING = "drawing directions", "moving along directions, updating, checksums"
_SERVER, _BATCHES = "server: forward and backward pass, optimizer", "cohorts and batches"
_MESSAGES, _FLOWER = "messages: encoding, decoding, checking, pricing", "Flower"
_HANDLERS, _STRATEGY = "clients: handlers and memory", "server: strategy and exchanges"
_COUNTING, _ELSE = "one client counts its costs, once in a run", "everything else"

ARITHMETIC: Final = (_PASSES, _PRODUCTS, _DRAWING, _MOVING, _SERVER)
"""What bare torch has to do as well."""

_PART_OF: Final = {
    "leansplit.zeroth_order.objective": _PASSES,
    "leansplit.zeroth_order.joint_passes": _PASSES,
    "leansplit.zeroth_order.objective.float64_inner_product": _PRODUCTS,
    "leansplit.zeroth_order.objective.inner_product_in_parts": _PRODUCTS,
    "leansplit.noise": _DRAWING,
    "leansplit.noise.seeds": None,
    "leansplit.zeroth_order.directions": _DRAWING,
    "leansplit.zeroth_order": _MOVING,
    "leansplit.federated.replica": _MOVING,
    "leansplit.federated.trained_vector": _MOVING,
    "leansplit.federated.optimizers": _MOVING,
    "leansplit.first_order": _SERVER,
    "leansplit.federated.sampling": _BATCHES,
    "leansplit.federated.presence": _BATCHES,
    "leansplit.wire": _MESSAGES,
    "leansplit.strategies.flower_records": _MESSAGES,
    "leansplit.costs": _COUNTING,
    "leansplit.clients.watched": _COUNTING,
    "leansplit.clients": _HANDLERS,
    "leansplit.clients.task_workload": _BATCHES,
    "leansplit.federated": _STRATEGY,
    "leansplit.strategies": _STRATEGY,
    "flwr": _FLOWER,
}
"""Function, module or package -> whose work it is, the longest name first; None: its caller's."""


class StackSampler:
    """Finds out what the main thread spends its time on, while it is in a ``with`` block.

    A timer interrupts it every millisecond of CPU time. The interpreter answers once the call into
    torch that is going on has ended, so a sample stands for the time since the last: a long call is
    booked in whole. It belongs to the innermost function that :data:`_PART_OF` knows; torch, numpy
    and models work for whoever called them.

    Attributes:
        parts: whose work -> seconds.
        functions: ``module.function`` of ours or of Flower's -> seconds, with what it called
            elsewhere.
        num_samples: how many samples these come from.
    """

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self.functions: defaultdict[str, float] = defaultdict(float)
        self.num_samples = 0
        self._last = 0.0

    def __enter__(self) -> StackSampler:
        """Begin."""
        self._before = signal.signal(signal.SIGPROF, self._sample)
        self._last = time.perf_counter()
        signal.setitimer(signal.ITIMER_PROF, _PERIOD_S, _PERIOD_S)
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)

    def _sample(self, _: int, frame: FrameType | None) -> None:
        seconds = time.perf_counter() - self._last
        part = function = ""
        while frame is not None and not part:
            module = frame.f_globals.get("__name__", "")
            if module.startswith(("leansplit.", "flwr.")):
                name = f"{module}.{frame.f_code.co_name}"
                function = function or name
                part = _part_of(name) or ""
            frame = frame.f_back
        self.parts[part or _ELSE] += seconds
        self.functions[function or _ELSE] += seconds
        self.num_samples += 1
        self._last = time.perf_counter()


@functools.cache
def _part_of(name: str) -> str | None:
    while name:
        if name in _PART_OF:
            return _PART_OF[name]
        name = name.rpartition(".")[0]
    return None


def profile(config: RunConfig) -> tuple[StackSampler, Outcome]:
    """Run ``config`` and return what its steps after the first three spent their time on.

    Raises:
        RunFailedError: if it does not complete.
    """
    sampler = StackSampler()
    with ExitStack() as sampling:

        def on_progress(progress: Progress) -> None:
            if progress.round == config.rounds:
                sampling.close()
            elif progress.round == WARM_UP:
                sampling.close()  # an evaluation may follow the round
                sampling.enter_context(sampler)

        outcome = launch(config, on_progress=on_progress)
    if outcome.status != "completed":
        raise RunFailedError(outcome.error or "the run did not complete")
    return sampler, outcome


def lines(sampler: StackSampler, outcome: Outcome, most_functions: int) -> list[str]:
    """Return the table: parts, what all arithmetic comes to, and the dearest functions."""
    config, rows = outcome.config, outcome.rounds
    steps, total = config.rounds - WARM_UP, sum(sampler.parts.values()) or 1.0

    def line(name: str, seconds: float) -> str:
        return f"  {name:<50} {seconds / total:>6.1%} {1e3 * seconds / steps:>10.2f} ms"

    table = ["whose work it is, share, time a step"]
    table += [line(name, seconds) for name, seconds in _largest_first(sampler.parts)]
    arithmetic = sum(sampler.parts[part] for part in ARITHMETIC)
    rest = total - arithmetic
    exchanges = (rows[-1]["num_exchanges"] - rows[0]["num_exchanges"]) / config.rounds
    each_us = 1e6 * rest / steps / (config.cohort * exchanges)
    table += [
        "the floor",
        line("arithmetic, which bare torch has as well", arithmetic),
        line("the rest", rest) + f": {each_us:.0f} us for each client and exchange",
        "functions, with what they call outside of leansplit and Flower",
    ]
    for name, seconds in _largest_first(sampler.functions)[:most_functions]:
        table.append(line(name.removeprefix("leansplit."), seconds))
    return table


def _largest_first(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def main(
    case: Annotated[str, typer.Argument(help=f"What is run: {', '.join(CASES)}.")] = "digits",
    steps: Annotated[int, typer.Option(help="Steps that are profiled.")] = 10,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
    functions: Annotated[int, typer.Option(help="Functions that are listed.")] = 12,
    set_: Annotated[list[str] | None, typer.Option("--set", help="More keys: KEY=VALUE.")] = None,
) -> None:
    """Print where the time of a step goes."""
    with exit_on_errors():
        require_choice("the case", case, CASES)
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        settings = step_settings(case, steps, IN_PROCESS, threads) | parse_settings(set_)
        config = run_config("ho-sfl", {"clients_per_node": "auto"} | settings)
        if config.workers != IN_PROCESS:
            raise UserError(f"workers must be {IN_PROCESS}: one process is looked at")
        sampler, outcome = profile(config)
        typer.echo(
            f"{case}: {steps} steps, {config.cohort:,} of {config.clients:,} clients, {threads} "
            f"threads; {sampler.num_samples:,} samples"
        )
        typer.echo(environment())
        for line in lines(sampler, outcome, functions):
            typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
