"""Directions drawn once and used by all clients of a process.

In HO-SFL every client of a round probes the same directions, and the update that follows needs
them again. A worker that stands in for many clients would draw each of them over and over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor

from leansplit.allocation import allocated_as
from leansplit.noise import Direction, draw_perturbation, draw_perturbations

_MAX_BYTES = 64 * 1024 * 1024
_MAX_DIRECTIONS = 4096
_PART_ELEMENTS = 131_072
_SHORTEST_PART = 8_192
_TOGETHER = 4  # times what is kept for good may be held of directions drawn together
_SPHERES: Final = ("sphere", "unit_sphere")

_Key = tuple[int, int, str, str]


class DirectionCache:
    """The most recently used directions, up to ``max_bytes`` and ``max_directions`` of them.

    The number is for small models, whose directions would fill the bytes for thousands of rounds
    and are drawn again in no time.

    Attributes:
        num_bytes: what the kept directions take.
    """

    def __init__(self, max_bytes: int, max_directions: int = _MAX_DIRECTIONS) -> None:
        self.max_bytes = max_bytes
        self.max_directions = max_directions
        self.num_bytes = 0
        self._kept: OrderedDict[_Key, Tensor] = OrderedDict()

    def draw(
        self, seed: int, num_elements: int, direction: Direction, device: torch.device | str
    ) -> Tensor:
        """Return the whole perturbation of ``seed``; a large one is drawn anew each time."""
        key = (seed, num_elements, direction, str(device))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        drawn = draw_perturbation(seed, num_elements, direction=direction, device=device)
        if drawn.nbytes and self.keeps(num_elements):
            self._kept[key] = drawn
            self.num_bytes += drawn.nbytes
            while self.num_bytes > self.max_bytes or len(self._kept) > self.max_directions:
                _, oldest = self._kept.popitem(last=False)
                self.num_bytes -= oldest.nbytes
        return drawn

    def keeps(self, num_elements: int) -> bool:
        """Say whether a direction is small enough to be kept."""
        return 4 * num_elements <= self.max_bytes // 8

    def __len__(self) -> int:
        return len(self._kept)


_shared = DirectionCache(_MAX_BYTES)
_cache: ContextVar[DirectionCache] = ContextVar("direction_cache", default=_shared)
"""The process's, but inside the blocks below: each thread has blocks of its own."""


def draw_direction(
    seed: int, num_elements: int, direction: Direction, device: torch.device | str
) -> Tensor:
    """Return the whole perturbation of ``seed``, shape [d]; shared, so never write to it.

    The most recently used directions are kept, up to 64 MiB and 4,096 of them in a process; larger
    ones are drawn anew each time.
    """
    return _cache.get().draw(seed, num_elements, direction, device)


def direction_parts(
    seed: int, num_elements: int, direction: Direction, device: torch.device | str
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the perturbation of ``seed`` in consecutive parts: (which elements, their values).

    The parts are slices of what :func:`draw_direction` returns, bit for bit. A direction that is
    not kept never exists as a whole: each part of 131,072 elements (512 KiB) is drawn when it is
    asked for. Spheres do, since their norm must be known first.
    """
    is_whole = direction in _SPHERES or _cache.get().keeps(num_elements)
    whole = draw_direction(seed, num_elements, direction, device) if is_whole else None
    for start in range(0, num_elements, _PART_ELEMENTS):
        stop = min(start + _PART_ELEMENTS, num_elements)
        yield (
            slice(start, stop),
            draw_perturbation(
                seed, num_elements, direction=direction, start=start, stop=stop, device=device
            )
            if whole is None
            else whole[start:stop],
        )


def parts_of_all(
    seeds: Sequence[int], num_elements: int, direction: Direction, device: torch.device | str
) -> Iterator[tuple[slice, Mapping[int, Tensor]]] | None:
    """Yield perturbations together, part by part: (which elements, seed -> their values).

    Each perturbation is drawn once, however often it is used. Of all together one part is held, up
    to 256 MiB.

    Returns:
        None where that is of no use, since the process keeps so few and small ones anyway, or would
        take more memory: more than 8,192 seeds of many elements, spheres that do not fit as a
        whole, a device that serves one client.
    """
    cache = _cache.get()
    if cache.keeps(num_elements) and 4 * num_elements * len(seeds) <= cache.max_bytes:
        return None
    size = _TOGETHER * cache.max_bytes // (4 * max(1, len(seeds)))
    if size < num_elements and (direction in _SPHERES or size < _SHORTEST_PART):
        return None
    if direction not in _SPHERES:
        size = min(size - size % _SHORTEST_PART, _PART_ELEMENTS) or num_elements

    def drawn() -> Iterator[tuple[slice, Mapping[int, Tensor]]]:
        with allocated_as("perturbation"):
            memory = torch.empty(len(seeds) * (min(size, num_elements) + 1), device=device)
        for start in range(0, num_elements, size):
            stop = min(start + size, num_elements)
            rows = draw_perturbations(
                seeds,
                num_elements,
                direction=direction,
                start=start,
                stop=stop,
                device=device,
                memory=memory,
            )
            yield slice(start, stop), dict(zip(seeds, rows, strict=True))

    return drawn()


@contextmanager
def unshared_directions() -> Iterator[None]:
    """Draw every direction anew inside the block, as a device that serves one client does."""
    with _keeping(0):
        yield


@contextmanager
def fresh_directions() -> Iterator[None]:
    """Know no direction that was drawn outside the block, or by another thread inside it."""
    with _keeping(_MAX_BYTES):
        yield


@contextmanager
def _keeping(max_bytes: int) -> Iterator[None]:
    token = _cache.set(DirectionCache(max_bytes))
    try:
        yield
    finally:
        _cache.reset(token)
