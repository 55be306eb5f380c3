"""Directions drawn once and used by all clients of a process.

In HO-SFL every client of a round probes the same directions, and the update that follows needs
them again. A worker that stands in for many clients would draw each of them over and over.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from leansplit.noise import Direction, draw_perturbation

_MAX_BYTES = 64 * 1024 * 1024
_kept: OrderedDict[tuple[int, int, str, str], Tensor] = OrderedDict()


def draw_direction(
    seed: int, num_elements: int, direction: Direction, device: torch.device | str
) -> Tensor:
    """Return the whole perturbation of ``seed``, shape [d]; shared, so never write to it.

    The most recently used directions are kept, up to 64 MiB in a process; larger ones are drawn
    anew each time.
    """
    key = (seed, num_elements, direction, str(device))
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    drawn = draw_perturbation(seed, num_elements, direction=direction, device=device)
    size = drawn.nbytes
    if size <= _MAX_BYTES // 8:
        _kept[key] = drawn
        while sum(tensor.nbytes for tensor in _kept.values()) > _MAX_BYTES:
            _kept.popitem(last=False)
    return drawn
