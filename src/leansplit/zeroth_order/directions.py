"""Directions drawn once and used by all clients of a process.

In HO-SFL every client of a round probes the same directions, and the update that follows needs
them again. A worker that stands in for many clients would draw each of them over and over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from leansplit.noise import Direction, draw_perturbation

_MAX_BYTES = 64 * 1024 * 1024

_Key = tuple[int, int, str, str]


class DirectionCache:
    """The most recently used directions, up to ``max_bytes`` of them.

    Attributes:
        num_bytes: what the kept directions take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
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
        if 0 < drawn.nbytes <= self.max_bytes // 8:
            self._kept[key] = drawn
            self.num_bytes += drawn.nbytes
            while self.num_bytes > self.max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.num_bytes -= oldest.nbytes
        return drawn

    def __len__(self) -> int:
        return len(self._kept)


_caches = [DirectionCache(_MAX_BYTES)]


def draw_direction(
    seed: int, num_elements: int, direction: Direction, device: torch.device | str
) -> Tensor:
    """Return the whole perturbation of ``seed``, shape [d]; shared, so never write to it.

    The most recently used directions are kept, up to 64 MiB in a process; larger ones are drawn
    anew each time.
    """
    return _caches[-1].draw(seed, num_elements, direction, device)


@contextmanager
def unshared_directions() -> Iterator[None]:
    """Draw every direction anew inside the block, as a device that serves one client does."""
    _caches.append(DirectionCache(0))
    try:
        yield
    finally:
        _caches.pop()
