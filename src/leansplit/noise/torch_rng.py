"""Torch's own generators, borrowed for one block: dropout and initialisation with a named seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's default generators inside the block and restore them afterwards.

    Layers such as dropout draw from the global generator of their device and take no argument;
    this is the one place that touches those of the CPU and of initialised CUDA devices.
    ``torch.manual_seed`` would not do: where CUDA is not initialised, each call records a stack
    trace, which costs more than a small client's step.
    """
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
