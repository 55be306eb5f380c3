"""What memory is held for: code says so where it allocates, and whoever watches a step reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, get_args

MemoryKind = Literal[
    "weights", "perturbation", "activations", "gradients", "optimizer_state", "logits", "batch"
]
MEMORY_KINDS: Final[tuple[MemoryKind, ...]] = get_args(MemoryKind)

_kind: ContextVar[MemoryKind | None] = ContextVar("memory_kind", default="activations")


@contextmanager
def allocated_as(kind: MemoryKind | None) -> Iterator[None]:
    """Say what tensors made inside the block are for; outside all such blocks: activations.

    None: copies to send or to store, which a device need not make all at once; nobody counts them.
    """
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def allocated_for() -> MemoryKind | None:
    """Return what a tensor made here is for."""
    return _kind.get()
