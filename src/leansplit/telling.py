"""What code says of its own step to whoever watches it; nothing happens where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from leansplit.allocation import MemoryKind, allocated_as

T = TypeVar("T")


class Watcher(Protocol):
    """Follows a step; see :mod:`leansplit.costs.measure`."""

    is_repeating: bool

    def counts(self) -> tuple[int, ...]:
        """Return the FLOPs so far, of each kind."""
        ...

    def count_again(self, since: tuple[int, ...], times: int) -> None:
        """Count the FLOPs since then, which :meth:`counts` returned, so many times more."""
        ...

    def hold(self, kind: MemoryKind, tensors: Iterable[Tensor]) -> None:
        """Count ``tensors`` from now on, whether they are used or not."""
        ...

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count ``tensors``, from now on."""
        ...

    def name_logits(self, outputs: Tensor) -> None:
        """Count activations with the shape of ``outputs`` as logits."""
        ...


watching: list[Watcher] = []
"""Whoever watches, the innermost last."""

_has_values: ContextVar[bool] = ContextVar("has_values", default=True)


@contextmanager
def without_values() -> Iterator[None]:
    """Say that tensors inside the block have no values, so that only costs come of what is done."""
    token = _has_values.set(False)
    try:
        yield
    finally:
        _has_values.reset(token)


def all_alike(items: Sequence[T]) -> Iterator[T]:
    """Go through ``items``, for each of which the same is done, and nothing is held afterwards.

    From the second on they cost the same. Where tensors have no values two are gone through, and
    whoever watches counts the second for all that follow.
    """
    if _has_values.get() or not watching or len(items) < 3:
        yield from items
        return
    yield items[0]
    since = watching[-1].counts()
    yield items[1]
    watching[-1].count_again(since, len(items) - 2)


def moments_of(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """Return what an optimizer keeps from step to step."""
    states = optimizer.state.values() if optimizer is not None else ()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def naming_logits(loss: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Return ``loss``, which says on its way what are logits to whoever watches."""

    def named(outputs: Any, labels: Tensor) -> Tensor:
        if watching and isinstance(outputs, Tensor):
            watching[-1].name_logits(outputs)
        with allocated_as("logits"):
            return loss(outputs, labels)

    return named


def leave_out(tensors: Iterable[Tensor]) -> None:
    """Say that a device would not hold these, so that whoever watches does not count them.

    Such are a simulation's copies and what only messages need; nothing happens outside a watch.
    """
    if watching:
        watching[-1].leave_out(tensors)


def count_moments(optimizer: torch.optim.Optimizer | None) -> None:
    """Say that a device holds an optimizer's moments, though this message may not touch them."""
    if watching:
        watching[-1].hold("optimizer_state", moments_of(optimizer))


@contextmanager
def repeated_pass() -> Iterator[None]:
    """Count FLOPs inside the block apart: of a pass that is run again since messages hold no graph.

    A device that keeps the graph between two messages would not run it.
    """
    watch = watching[-1] if watching else None
    if watch is None:
        yield
        return
    watch.is_repeating = True
    try:
        yield
    finally:
        watch.is_repeating = False
