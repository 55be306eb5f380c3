"""Batches of several clients run through one model at once, where that changes no bit.

In a simulation all clients of a process hold the same parameters and probe the same directions.
One pass of many joined batches then does the work of many passes. Kernels may round differently
for other batch sizes, so a joined pass is used only after one of exactly its shape has given every
client its own bits, and has taken less time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from leansplit.parameters import ParameterDict
from leansplit.sequences import are_tokens
from leansplit.zeroth_order.objective import forward_only
from leansplit.zeroth_order.passes_by_length import run_by_length


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
_MAX_OUTPUT_BYTES, _MAX_OUTPUT_BYTES_ELSEWHERE = 64 * 2**20, 2**30
"""Of a joined pass under ``auto``, on the CPU and on other devices: what long sequences and wide
layers take must stay bounded."""
_ENOUGH_SHAPES, _WORTHWHILE = 4, 1.1  # so many lengths without such a gain: no more trials
Pass = Callable[[Tensor], Tensor]
"""A batch [B, ...] -> its outputs [B, ...], each row a function of its own input alone."""

_Key = tuple[tuple[int, ...], torch.dtype]
_Kind = tuple[int, int, torch.dtype, int]  # batch size, axes, type, and the size of a joined pass


@dataclass(frozen=True)
class JointPassChoice:
    """A size of joined passes that is used, since it is equal and faster.

    Attributes:
        shape: of one client's batch, [B, ...].
        joined: how many batches are run at once.
        speedup: time of single passes / time of the joined one.
    """

    shape: tuple[int, ...]
    joined: int
    speedup: float


@dataclass
class JointPasses:
    """Runs batches of several clients through one model, several at once where that is equal.

    Sizes are powers of two. Each is tried once for every shape of a batch, when there are first
    that many batches, and from then on what is fastest is taken of those that fit. Texts come in
    many lengths: a size is timed in four of them. If their median gain is below a tenth it is not
    tried in others, else only for equality.

    Attributes:
        mode: ``auto``: as described; ``on``: as many at once as :data:`MAX_SAMPLES` allows, and
            token sequences by their length (:mod:`.passes_by_length`), with the bits that come of
            it; ``off``: never.
        speedups: by shape and type, then by size: what was measured, of texts from the fifth length
            on the median of those before; 0 = not equal.
        unreported: sizes found to be faster that nobody was told of yet.
    """

    mode: JointPassesMode = "auto"
    speedups: dict[_Key, dict[int, float]] = field(default_factory=dict)
    unreported: list[JointPassChoice] = field(default_factory=list)
    _output_bytes: dict[_Key, int] = field(default_factory=dict)
    _gains: dict[_Kind, list[float]] = field(default_factory=dict)

    def alike(self, batch: Tensor) -> Hashable:
        """Return what batches must have in common to be run by one call of :meth:`run`."""
        return ("tokens", batch.dtype) if self._is_by_length(batch) else _key(batch)

    def take(self, num_batches: int) -> bool:
        """Say whether so many batches, all :meth:`alike`, are run by :meth:`run` at all."""
        return self.mode == "on" or (self.mode == "auto" and num_batches > 1)

    def _is_by_length(self, batch: Tensor) -> bool:
        return self.mode == "on" and are_tokens(batch)

    def run(self, forward: Pass, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield ``forward(batch)`` for every batch, in order.

        Args:
            forward: the pass, under parameters that are the same for all batches.
            batches: all :meth:`alike`.
        """
        if batches and self._is_by_length(batches[0]):
            yield from run_by_length(forward, batches)
            return
        start = 0
        while start < len(batches):
            chunk = batches[start:]
            size, key = self._size(forward, chunk), _key(chunk[0])
            for outputs in _together(forward, chunk[:size]):
                self._output_bytes[key] = outputs.nbytes
                yield outputs
            start += size

    def _size(self, forward: Pass, batches: Sequence[Tensor]) -> int:
        """Return how many of the batches are to be run at once."""
        first = batches[0]
        most = min(len(batches), max(MAX_SAMPLES // max(len(first), 1), 1))
        if self.mode != "auto":
            return most if self.mode == "on" else 1
        key = _key(first)
        if key not in self._output_bytes:
            return 1  # what a pass takes is found out first
        is_cpu = first.device.type == "cpu"
        allowed = _MAX_OUTPUT_BYTES if is_cpu else _MAX_OUTPUT_BYTES_ELSEWHERE
        most = min(most, max(allowed // max(self._output_bytes[key], 1), 1))
        speedups = self.speedups.setdefault(key, {1: 1.0})
        size = 2
        while size <= most:
            gains = self._gains.setdefault((len(first), first.ndim, first.dtype, size), [])
            if size in speedups:
                pass
            elif len(gains) < _ENOUGH_SHAPES:
                speedups[size] = speedup = _measured_speedup(forward, batches[:size])
                gains.append(speedup)
                if speedup > 1:
                    self.unreported.append(JointPassChoice(tuple(first.shape), size, speedup))
            elif (usual := median(gains)) >= _WORTHWHILE:
                speedups[size] = usual if _is_equal(forward, batches[:size]) else 0.0
            size *= 2
        return max((size for size in speedups if size <= most), key=lambda size: speedups[size])


def evaluate_jointly(
    passes: JointPasses, model: nn.Module, objectives: Sequence[BatchObjective]
) -> Callable[[ParameterDict], list[float]]:
    """Return parameters -> the objectives' values, for :func:`.probe_each`."""
    batches = [objective.inputs for objective in objectives]

    def evaluate(parameters: ParameterDict) -> list[float]:
        outputs = passes.run(lambda x: forward_only(model, parameters, x), batches)
        return [o.value_of(z) for o, z in zip(objectives, outputs, strict=True)]

    return evaluate


def _together(forward: Pass, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    if len(batches) == 1:
        yield forward(batches[0])
        return
    outputs, size_of_one = forward(torch.cat(list(batches))), len(batches[0])
    for first in range(0, len(outputs), size_of_one):
        yield outputs[first : first + size_of_one]


def _singly(forward: Pass, batches: Sequence[Tensor]) -> list[Tensor]:
    return [forward(batch) for batch in batches]


def _jointly(forward: Pass, batches: Sequence[Tensor]) -> list[Tensor]:
    return [*_together(forward, batches)]


def _is_equal(forward: Pass, batches: Sequence[Tensor]) -> bool:
    """Say whether a joined pass gives every batch its own bits."""
    try:
        return all(map(torch.equal, _jointly(forward, batches), _singly(forward, batches)))
    except torch.OutOfMemoryError:
        return False


def _measured_speedup(forward: Pass, batches: Sequence[Tensor]) -> float:
    """Return time of single passes / time of a joined one; 0 if their bits differ.

    The better of two times each, of which the first warms up.
    """
    singly, jointly = partial(_singly, forward, batches), partial(_jointly, forward, batches)
    try:
        (single_s, expected), (joined_s, found) = _timed(singly), _timed(jointly)
        if not all(map(torch.equal, found, expected)):
            return 0.0
        del expected, found
        return min(single_s, _timed(singly)[0]) / min(joined_s, _timed(jointly)[0])
    except torch.OutOfMemoryError:
        return 0.0


def _timed(work: Callable[[], list[Tensor]]) -> tuple[float, list[Tensor]]:
    started = time.perf_counter()
    outputs = work()
    if outputs[0].is_cuda:  # where the work may only have been launched
        torch.cuda.synchronize(outputs[0].device)
    return time.perf_counter() - started, outputs


def _key(batch: Tensor) -> _Key:
    return tuple(batch.shape), batch.dtype
