"""Ctrl-C or SIGTERM: once to end well with everything measured so far, twice to abort."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from weakref import WeakSet

_interrupted: WeakSet[threading.Event] = WeakSet()
"""What a signal has set."""


@contextmanager
def stop_on_interrupt(stop: threading.Event, *, takes_over: bool = False) -> Iterator[None]:
    """Turn the first Ctrl-C into a request to stop; the second aborts. Only the main thread can.

    SIGTERM, by which systems end what runs on them, is taken alike, unless this process has a way
    of its own to take it (those of a comparison end at once) and the caller does not take over.

    May be entered again inside the block, with the same event. A Ctrl-C that came while the signal
    was held back (:func:`hold_interrupts`) counts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask_to_stop(signum: int, frame: FrameType | None) -> None:
        if stop in _interrupted:  # whoever else set it pressed no Ctrl-C
            raise KeyboardInterrupt
        _interrupted.add(stop)
        stop.set()

    ends = [signal.SIGINT]
    if takes_over or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        ends.append(signal.SIGTERM)
    before = {end: signal.signal(end, ask_to_stop) for end in ends}
    try:
        with _interrupts(held=False):
            yield
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


@contextmanager
def finish_first() -> Iterator[None]:
    """Put any end off until the block is done: for writing what hours of work have measured.

    Neither Ctrl-C nor SIGTERM, by which a comparison that is aborted ends its processes, gets in.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    ends = (signal.SIGINT, signal.SIGTERM)
    before = {end: signal.signal(end, lambda signum, frame: came.append(signum)) for end in ends}
    try:
        yield
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)
    for signum in dict.fromkeys(came):
        signal.raise_signal(signum)


def hold_interrupts() -> AbstractContextManager[None]:
    """Hold Ctrl-C back inside the block; processes that start in it hold it back for good."""
    return _interrupts(held=True)


@contextmanager
def _interrupts(*, held: bool) -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    how = signal.SIG_BLOCK if held else signal.SIG_UNBLOCK
    before = signal.pthread_sigmask(how, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
