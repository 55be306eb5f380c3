"""The noise stream in one GPU kernel with what it is added to (Triton): base + sum of scale u.

Drawing a direction by :mod:`leansplit.noise.philox` writes and reads memory for every operation.
Here a direction never leaves the registers: whatever the number of directions, ``base`` is read
once and the result written once, 8 bytes for each parameter. The bits are those of the CPU, since
the operations are, in the same order: multiplications and additions are not joined
(``enable_fp_fusion=False``), divisions and roots are those that round correctly.

Triton comes with torch's CUDA packages. Where it is missing, or where a trial of the kernel does
not give the CPU's bits, :func:`fused_kernel_for` returns None and torch's operations do the work.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from leansplit.noise import stream
from leansplit.noise.stream import Direction

FUSED_DIRECTIONS: Final[tuple[Direction, ...]] = ("gaussian", "rademacher")
"""Directions whose elements do not depend on each other."""

AddScaled = Callable[[Tensor, Sequence[int], Sequence[float], str], Tensor]
"""(base [d], seeds, scales, direction) -> base + scale_0 u_0 + scale_1 u_1 + ..., in new memory."""

_logger = logging.getLogger(__name__)
_TRIAL_ELEMENTS: Final = 5003  # several blocks, the last of them cut off
_GAUSSIAN_COUNTERS, _RADEMACHER_COUNTERS = 128, 8  # Philox blocks of 8 and of 256 elements


def fused_kernel_for(device: torch.device, direction: str) -> AddScaled | None:
    """Return what adds directions on ``device`` in one kernel; None if it has none.

    A kernel is taken only after a trial on the device gave the bits of the CPU's stream.
    """
    if direction not in FUSED_DIRECTIONS or stream._is_blank:
        return None
    if device.type != "cuda" and not _is_interpreted():
        return None
    return add_scaled if _gives_the_bits_of_the_cpu(device) else None


def _is_interpreted() -> bool:
    """Say whether Triton runs kernels as plain Python, on the CPU: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _gives_the_bits_of_the_cpu(device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        if all(_trial(device, direction) for direction in FUSED_DIRECTIONS):
            return True
        reason = "its bits are not those of the CPU"
    except Exception as error:  # of a compiler, of a driver: none of them is the user's mistake
        reason = (str(error) or type(error).__name__).splitlines()[0]
    _logger.warning("no fused perturb kernel on %s: %s", device, reason)
    return False


def _trial(device: torch.device, direction: Direction) -> bool:
    base = torch.linspace(-1.0, 1.0, _TRIAL_ELEMENTS)
    seeds, scales = (1, (1 << 64) - 2), (1e-3, -0.7)
    expected = base.clone()
    for seed, scale in zip(seeds, scales, strict=True):
        expected += scale * stream.draw_perturbation(seed, _TRIAL_ELEMENTS, direction=direction)
    found = add_scaled(base.to(device), seeds, scales, direction)
    return torch.equal(found.cpu(), expected)


def add_scaled(
    base: Tensor, seeds: Sequence[int], scales: Sequence[float], direction: str
) -> Tensor:
    """Return base + scale_0 u_0 + scale_1 u_1 + ..., added in this order, in new memory.

    Args:
        base: float32 [d], contiguous, on a device that Triton compiles for.
        seeds: of the directions u_p, each in [0, 2**64).
        scales: their factors, rounded to float32.
        direction: one of :data:`FUSED_DIRECTIONS`.

    Returns:
        float32 [d]; 8 d bytes are moved.
    """
    from leansplit.noise.triton_kernels import add_scaled_kernel

    is_rademacher = direction == "rademacher"
    counters = _RADEMACHER_COUNTERS if is_rademacher else _GAUSSIAN_COUNTERS
    whole_blocks, rest = divmod(len(base), counters * (256 if is_rademacher else 8))
    signed = torch.from_numpy(np.asarray(seeds, np.uint64).view(np.int64)).to(base.device)
    factors = torch.tensor(scales, dtype=torch.float32, device=base.device)
    out = torch.empty_like(base)
    # Without a mask four elements are loaded and stored at once, so only the last block has one.
    launches = [(0, whole_blocks, False), (whole_blocks, 1 if rest else 0, True)]
    with torch.cuda.device_of(base):  # type: ignore[no-untyped-call]
        for first_block, blocks, is_cut_off in launches:
            if not blocks:
                continue
            add_scaled_kernel[(blocks,)](
                *(base, out, signed, factors, len(base), first_block, len(seeds)),
                IS_RADEMACHER=is_rademacher,
                IS_CUT_OFF=is_cut_off,
                COUNTERS=counters,
                enable_fp_fusion=False,
            )
    return out
