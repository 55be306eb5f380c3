"""Torch's own generators, borrowed for one block: dropout and initialisation with a named seed.

Layers such as dropout draw from the global generator of their device and take no argument; this
module is the one place that touches those of the CPU and of initialised CUDA devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def default_generators() -> list[torch.Generator]:
    """Return the global generators that a layer may draw from."""
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators
    return generators


def generator_states() -> list[Tensor]:
    """Return the states of all global generators, for :func:`restore_generators`."""
    return [generator.get_state() for generator in default_generators()]


def restore_generators(states: Sequence[Tensor]) -> None:
    """Put the global generators back to earlier states.

    A device that was initialised since then is left as it is.
    """
    for generator, state in zip(default_generators(), states, strict=False):
        generator.set_state(state)


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch's default generators inside the block and restore them afterwards.

    ``torch.manual_seed`` would not do: where CUDA is not initialised, each call records a stack
    trace, which costs more than a small client's step.
    """
    states = generator_states()
    for generator in default_generators():
        generator.manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF)
    try:
        yield
    finally:
        restore_generators(states)
