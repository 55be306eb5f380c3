"""Devices other than the CPU: which can be used, how they must compute, what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from leansplit.errors import UserError
from leansplit.noise import draw_perturbation
from leansplit.telling import leave_out

CPU = torch.device("cpu")
_UNUSABLE = (RuntimeError, AssertionError, TypeError, AttributeError, ImportError)
"""What torch raises for a device that it does not know, was not built for, or does not find."""


def on(vector: Tensor, device: torch.device) -> Tensor:
    """Return a trained vector on ``device``; if that is a copy, it is what a client holds of it.

    Replicas stay where the server's mirror is, on the CPU: another device would round their updates
    differently, and they must agree with it bit for bit.
    """
    there = vector.to(device)
    if there is not vector:
        leave_out([vector])
    return there


def usable_device(name: str) -> torch.device:
    """Return the device called ``name``, such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        UserError: if there is none here, or it does not draw the noise that the CPU draws.
    """
    if name == "cpu":
        return CPU
    try:
        device = torch.device(name)
        if device.type == "cpu":
            raise RuntimeError("the CPU has no number; its name is cpu")
        drawn = draw_perturbation(1, 8, device=device).cpu()
    except _UNUSABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    if not torch.equal(drawn, draw_perturbation(1, 8)):
        raise UserError(f"device {name!r} does not draw the noise that the CPU draws")
    return device


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep GPUs from rounding operands to TF32 inside the block, and from choosing kernels by time.

    A finite difference of 1e-3 drowns in the ten bits of a TF32 mantissa.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    precision = torch.get_float32_matmul_precision()
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, True, False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch.set_float32_matmul_precision(precision)
