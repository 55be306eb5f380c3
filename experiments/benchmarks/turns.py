"""Programs and calls that take turns, one at a time, so that their times can be compared."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence

AfterStep = Callable[[], None]
"""To be called after every step; it returns when the next one may begin."""


class Turns:
    """Runs programs in threads of their own of which one is awake at any time.

    A machine that others use is faster now and slower then. Steps that are taken side by side see
    the same machine, so their ratio is worth more than either time.
    """

    def __init__(self, programs: Mapping[str, Callable[[AfterStep], None]]) -> None:
        self._programs = programs
        self._names = list(programs)
        self._awake = threading.Condition()
        self._turn: str | None = None
        self._began = 0.0
        self._errors: list[BaseException] = []
        self._seconds: dict[str, list[float]] = {name: [] for name in programs}

    def run(self) -> dict[str, list[float]]:
        """Run all programs to their end; return the seconds of each one's steps, in order.

        What comes before a program's first step is part of that step, what comes after its last
        one of none.

        Raises:
            BaseException: what the first program that failed raised.
        """
        threads = [
            threading.Thread(target=self._run, args=(name,), daemon=True) for name in self._names
        ]
        for thread in threads:
            thread.start()
        self._pass_on(None)
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        return self._seconds

    def _run(self, name: str) -> None:
        self._wait(name)
        try:
            self._programs[name](lambda: self._after_step(name))
        except BaseException as error:
            self._errors.append(error)
        with self._awake:
            position = self._names.index(name)
            self._names.remove(name)
            self._turn = self._names[position % len(self._names)] if self._names else None
            self._awake.notify_all()

    def _after_step(self, name: str) -> None:
        self._seconds[name].append(time.perf_counter() - self._began)
        self._pass_on(name)
        self._wait(name)

    def _pass_on(self, name: str | None) -> None:
        with self._awake:
            after = 0 if name is None else self._names.index(name) + 1
            self._turn = self._names[after % len(self._names)]
            self._awake.notify_all()

    def _wait(self, name: str) -> None:
        with self._awake:
            self._awake.wait_for(lambda: self._turn == name)
            self._began = time.perf_counter()


def ratios(above: Sequence[float], below: Sequence[float], warm_up: int) -> tuple[float, ...]:
    """Return (first quartile, median, third quartile) of the ratios of steps taken in one turn."""
    each = [a / b for a, b in zip(above[warm_up:], below[warm_up:], strict=False)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return low, middle, high


def interleaved_ratios(
    baseline: Callable[[], object], others: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Time the baseline and the others in turn; return each one's ratios to the baseline."""
    each: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(repeats):
        reference_s = _seconds(baseline)
        for name, other in others.items():
            each[name].append(_seconds(other) / reference_s)
    return each


def spread(values: Sequence[float]) -> str:
    """Return minimum, median and maximum of all but the first, which warms up."""
    counted = values[1:]
    low, high = min(counted), max(counted)
    return f"min {low:.2f}, median {statistics.median(counted):.2f}, max {high:.2f}"


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
