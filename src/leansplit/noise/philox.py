"""The noise stream in torch integers, for accelerators: the same bits as numpy's on the CPU.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on int64
tensors, which wrap modulo 2**64; the upper half of a 64x64-bit product is assembled from 32-bit
limbs because torch has no wide multiplication. Each torch operation is one kernel, so nothing
contracts a multiplication and an addition into one rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leansplit.noise.seeds import STREAM_VERSION

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_WEYL_STEPS = tuple((i * _WEYL[0], i * _WEYL[1]) for i in range(_ROUNDS))  # of the round keys
_MASK32 = 0xFFFF_FFFF
_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    """Return the int64 with the same bits as the unsigned 64-bit ``value``."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 bits, where torch's own shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _multiply_high_low(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the upper and lower 64 bits of the unsigned product ``x * multiplier``."""
    m_low, m_high = multiplier & _MASK32, multiplier >> 32
    x_low, x_high = x & _MASK32, _shift_right(x, 32)
    low_low = x_low * m_low
    middle_a = x_high * m_low + _shift_right(low_low, 32)
    middle_b = x_low * m_high + (middle_a & _MASK32)
    high = x_high * m_high + _shift_right(middle_a, 32) + _shift_right(middle_b, 32)
    return high, x * _signed(multiplier)


def words(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return words ``start`` to ``start + count`` of the stream as int64 bits, shape [count]."""
    first_block = start // 4
    num_blocks = (start + count + 3) // 4 - first_block
    counter = torch.arange(first_block + 1, first_block + 1 + num_blocks, device=device)
    keys = [(_signed(seed + at[0]), _signed(STREAM_VERSION + at[1])) for at in _WEYL_STEPS]
    skip = start - 4 * first_block
    return torch.stack(_blocks(counter, keys), dim=1).flatten()[skip : skip + count]


def first_uniforms(seeds: Sequence[int]) -> list[float]:
    """Return what ``numpy_generator(seed).random()`` gives first, for many seeds at once.

    A generator of its own for each of thousands of clients takes ten times as long.
    """
    key = torch.tensor([*map(_signed, seeds)], dtype=torch.int64)
    keys = [(key + _signed(at[0]), _signed(at[1])) for at in _WEYL_STEPS]
    first, *_ = _blocks(torch.ones_like(key), keys)
    uniforms: list[float] = (_shift_right(first, 11).double() * 2.0**-53).tolist()
    return uniforms


def _blocks(
    counter: Tensor, keys: Sequence[tuple[Tensor | int, int]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four words of each of the blocks [n] that ``counter`` names, under round keys."""
    c0, c1 = counter, torch.zeros_like(counter)
    c2, c3 = torch.zeros_like(counter), torch.zeros_like(counter)
    for key0, key1 in keys:
        high0, low0 = _multiply_high_low(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply_high_low(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
    return c0, c1, c2, c3


def rademacher(seed: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Return elements ``start`` to ``stop`` of the Rademacher stream as float32."""
    first = start // 64
    drawn = words(seed, first, -(-stop // 64) - first, device)
    bits = (drawn[:, None] >> torch.arange(64, device=device)) & 1
    return (bits.flatten()[start - 64 * first : stop - 64 * first] * 2 - 1).float()


def gaussian(seed: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Return elements ``start`` to ``stop`` of the Gaussian stream as float32.

    The same operations in the same order as the numpy version in :mod:`leansplit.noise.stream`.
    """
    from leansplit.noise import stream

    first = start // 2
    drawn = words(seed, first, -(-stop // 2) - first, device)
    low, high = drawn & _MASK32, drawn >> 32

    scaled = ((low >> 8) + 1).float()
    raw = scaled.view(torch.int32)
    exponent = (raw - stream._SQRT_HALF_BITS) >> 23
    mantissa = (raw - (exponent << 23)).view(torch.float32)
    numerator = mantissa - 1.0
    s = numerator / (numerator + 2.0)
    z = s * s
    log_m = (_horner(z, stream.LOG_COEFFICIENTS) * z + 2.0) * s
    log_u = log_m + (exponent - 24).float() * float(stream._LOG_2)
    # Through float64, because torch's float32 root on the CPU may miss the last place.
    radius = (log_u * -2.0).double().sqrt().float()

    half_angle = high.float() * float(stream._ANGLE_SCALE)
    z = half_angle * half_angle
    sine = _horner(z, stream.SIN_COEFFICIENTS) * half_angle
    cosine = _horner(z, stream.COS_COEFFICIENTS)
    odd = sine * cosine * 2.0 * radius
    even = (sine * sine) * -2.0 + 1.0
    even = torch.where((low & 1).bool(), -even, even) * radius
    pairs = torch.stack((even, odd), dim=1).flatten()
    return pairs[start - 2 * first : stop - 2 * first]


def _horner(x: Tensor, coefficients: tuple[object, ...]) -> Tensor:
    *low, highest = (float(c) for c in coefficients)  # type: ignore[arg-type]
    out = x * highest
    for index, coefficient in enumerate(reversed(low)):
        out = (out * x if index else out) + coefficient
    return out
