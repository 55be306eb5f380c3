"""What code says of its own step to whoever watches it; nothing happens where nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from leansplit.allocation import MemoryKind, allocated_as


class Watcher(Protocol):
    """Follows a step; see :mod:`leansplit.costs.measure`."""

    is_repeating: bool

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
