"""Torch's own generator, borrowed for one block: dropout and initialisation with a named seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's default CPU generator inside the block and restore it afterwards.

    Layers such as dropout draw from the global generator and take no argument; this is the one
    place that touches it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
        yield
