"""Several runs at once, each in a process of its own.

A run without Ray (``workers = -1``) uses one core, so a comparison of many runs keeps all cores
busy best by working on several at a time. Results do not depend on it: same bits, other times.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.runner import FLOWER, Runner
from leansplit.experiments.running import run_and_write
from leansplit.server_app.checkpoint_files import read_checkpoint
from leansplit.server_app.config import RunConfig
from leansplit.server_app.interruption import hold_interrupts, stop_on_interrupt
from leansplit.server_app.recording import Progress
from leansplit.server_app.results import RunResult

_PERIOD_S = 1.0
_REQUEST: Final = getattr(signal, "SIGUSR1", None)
"""The signal by which a process is asked to stop; there is none on Windows."""
_asked_to_stop = threading.Event()  # of a process that makes runs for another


@dataclass(frozen=True)
class Job:
    """One run to make."""

    key: int
    """Names the job to the caller."""
    config: RunConfig
    out_dir: Path
    label: str
    command: list[str]
    """What is recorded as the command."""
    runner: Runner = FLOWER
    """Who makes it."""
    start: Path | None = None
    """The checkpoint that it goes on from."""

    def run(
        self,
        *,
        stop: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> RunResult:
        """Make the run in this process."""
        return run_and_write(
            self.config,
            self.out_dir,
            label=self.label,
            command=self.command,
            runner=self.runner,
            start=None if self.start is None else read_checkpoint(self.start),
            stop=stop,
            on_progress=on_progress,
        )


def run_jobs(
    jobs: Sequence[Job], num_processes: int, stop: threading.Event | None = None
) -> Iterator[tuple[int, RunResult | RunFailedError | UserError | None]]:
    """Run jobs in the order given, ``num_processes`` at a time, and yield them as they end.

    A first Ctrl-C or SIGTERM, or ``stop``, starts no more jobs, and those that run end after their
    current round, whether or not their processes heard of it themselves; a second aborts: whoever
    leaves before the end ends the processes, whatever they are doing but writing. A process that
    dies takes the runs of its pool with it; the others go on in a new pool.

    Yields:
        (key of the job, its result or what it raised; None: Ctrl-C came before it started).
    """
    stop = stop or threading.Event()
    with stop_on_interrupt(stop), _unread_requests():
        yield from _run_until(stop, jobs, num_processes)


def _run_until(
    stop: threading.Event, jobs: Sequence[Job], num_processes: int
) -> Iterator[tuple[int, RunResult | RunFailedError | UserError | None]]:
    strangers = active_children()
    waiting = list(reversed(jobs))
    running: dict[Future[RunResult], int] = {}
    pool = _pool(num_processes)
    is_broken = False
    try:
        while waiting or running:
            if is_broken and not running:
                pool.shutdown(wait=False)
                pool, is_broken = _pool(num_processes), False
            while waiting and len(running) < num_processes and not is_broken:
                job = waiting.pop()
                if stop.is_set():
                    yield job.key, None
                    continue
                # A process that starts now has Ctrl-C held back until its run can end cleanly.
                with hold_interrupts():
                    running[pool.submit(_run, job)] = job.key
            done, _ = wait(running, timeout=_PERIOD_S, return_when=FIRST_COMPLETED)
            if stop.is_set():
                _ask_to_stop(process for process in active_children() if process not in strangers)
            for future in done:
                key, error = running.pop(future), future.exception()
                is_broken |= isinstance(error, BrokenProcessPool)
                if error is None:
                    yield key, future.result()
                elif isinstance(error, (UserError, RunFailedError)):
                    yield key, error
                else:
                    yield key, RunFailedError(f"its process ended: {type(error).__name__}: {error}")
    except BaseException:
        for process in active_children():
            if process not in strangers:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _unread_requests() -> Iterator[None]:
    """Let processes that start ignore requests to stop until they can read them."""
    if _REQUEST is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(_REQUEST, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(_REQUEST, before)


def _ask_to_stop(processes: Iterable[BaseProcess]) -> None:
    """Ask each process to end its run after the current round; as often as one likes.

    Not by Ctrl-C's signal: they may have heard that one already, and twice means now.
    """
    for process in processes:
        if _REQUEST is not None and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, _REQUEST)


def _pool(num_processes: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork of a process with threads may hang, and would share its state.
    return ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=_end_when_nobody_waits
    )


def _end_when_nobody_waits() -> None:
    """End this process cleanly when its parent says so, at once if that is gone, killed perhaps."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(1))
    if _REQUEST is not None:
        signal.signal(_REQUEST, lambda signum, frame: _asked_to_stop.set())
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job) -> RunResult:
    from leansplit.plugins import load_plugins

    load_plugins()
    try:
        return job.run(stop=_asked_to_stop)
    except SystemExit:
        os._exit(1)  # the pool would take it for an error of the job, and give this process another
