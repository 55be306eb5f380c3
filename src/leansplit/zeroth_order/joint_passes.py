"""Batches of several clients run through one model at once, where that changes no bit.

In a simulation all clients of a process hold the same parameters and probe the same directions.
One pass of many joined batches then does the work of many passes. Kernels may round differently
for other batch sizes, so a joined pass is used only after one of exactly its shape has given every
client its own bits, and has taken less time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from leansplit.parameters import ParameterDict
from leansplit.zeroth_order.objective import forward_only


class BatchObjective(Protocol):
    """An objective of one batch under a model, whose value follows from the model's outputs."""

    @property
    def inputs(self) -> Tensor:
        """x, shape [B, ...]."""
        ...

    def value_of(self, outputs: Tensor) -> float:
        """Return F, of the outputs for ``inputs``."""
        ...


JointPassesMode = Literal["auto", "on", "off"]
JOINT_PASSES_MODES: Final[tuple[str, ...]] = get_args(JointPassesMode)

MAX_SAMPLES: Final = 1024
"""Of one joined pass; more held no gain in any measurement and take memory."""
_SHRINK: Final = 4

Pass = Callable[[Tensor], Tensor]
"""A batch [B, ...] -> its outputs [B, ...], each row a function of its own input alone."""

_Key = tuple[str, tuple[int, ...], torch.dtype, int]


@dataclass(frozen=True)
class JointPassChoice:
    """What was found for one kind of pass.

    Attributes:
        kind: what the pass is of.
        shape: of one client's batch, [B, ...].
        num_batches: how many batches were there to join.
        joined: how many are run at once; 1 = each by itself.
        speedup: time of single passes / time of joined ones; 1 where nothing is joined.
    """

    kind: str
    shape: tuple[int, ...]
    num_batches: int
    joined: int
    speedup: float


@dataclass
class JointPasses:
    """Runs batches of several clients through a model, several at once where that is equal.

    Attributes:
        mode: ``auto``: as measured at the first pass of a kind; ``on``: as many at once as
            :data:`MAX_SAMPLES` allows, with the bits that come of it; ``off``: never.
        choices: what was found, by kind, shape and number of batches.
    """

    mode: JointPassesMode = "auto"
    choices: dict[_Key, JointPassChoice] = field(default_factory=dict)

    def run(self, kind: str, forward: Pass, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield ``forward(batch)`` for every batch, in order.

        Args:
            kind: name of what is run; passes of one kind on one shape share a choice.
            forward: the pass, under parameters that are the same for all batches.
            batches: all of one shape and type.
        """
        first = batches[0]
        key = (kind, tuple(first.shape), first.dtype, len(batches))
        if key not in self.choices:
            self.choices[key] = self._choose(key, forward, batches)
        yield from _in_chunks(forward, batches, self.choices[key].joined)

    def _choose(self, key: _Key, forward: Pass, batches: Sequence[Tensor]) -> JointPassChoice:
        kind, shape, _, num_batches = key
        most = min(num_batches, MAX_SAMPLES // max(shape[0], 1))
        joined, speedup = 1, 1.0
        if self.mode == "on":
            joined = max(most, 1)
        elif self.mode == "auto" and most > 1:
            single = min(_timed(forward, batches, 1) for _ in range(2))  # the first one warms up
            while most > 1:
                taken = _timed(forward, batches, most)
                if single / taken > speedup and _is_equal(forward, batches, most):
                    joined, speedup = most, single / taken
                most //= _SHRINK
        return JointPassChoice(kind, shape, num_batches, joined, speedup)


def evaluate_jointly(
    passes: JointPasses, kind: str, model: nn.Module, objectives: Sequence[BatchObjective]
) -> Callable[[ParameterDict], list[float]]:
    """Return parameters -> the objectives' values, for :func:`.probe_each`."""
    batches = [objective.inputs for objective in objectives]

    def evaluate(parameters: ParameterDict) -> list[float]:
        outputs = passes.run(kind, lambda x: forward_only(model, parameters, x), batches)
        return [o.value_of(z) for o, z in zip(objectives, outputs, strict=True)]

    return evaluate


def _in_chunks(forward: Pass, batches: Sequence[Tensor], size: int) -> Iterator[Tensor]:
    for start in range(0, len(batches), size):
        chunk = batches[start : start + size]
        if len(chunk) == 1:
            yield forward(chunk[0])
            continue
        outputs, size_of_one = forward(torch.cat(list(chunk))), len(chunk[0])
        for first in range(0, len(outputs), size_of_one):
            yield outputs[first : first + size_of_one]


def _timed(forward: Pass, batches: Sequence[Tensor], size: int) -> float:
    """Return the seconds that all batches take, ``size`` at a time."""
    _finish(batches[0])
    started = time.perf_counter()
    for outputs in _in_chunks(forward, batches, size):
        del outputs
    _finish(batches[0])
    return time.perf_counter() - started


def _finish(on_device: Tensor) -> None:
    """Wait for what was launched on an accelerator."""
    if on_device.is_cuda:
        torch.cuda.synchronize(on_device.device)


def _is_equal(forward: Pass, batches: Sequence[Tensor], size: int) -> bool:
    """Say whether joined passes give every batch the bits of a pass of its own."""
    pairs = zip(_in_chunks(forward, batches, size), batches, strict=True)
    return all(torch.equal(outputs, forward(batch)) for outputs, batch in pairs)
