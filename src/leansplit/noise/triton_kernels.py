"""Triton's side of :mod:`leansplit.noise.fused`: kernels that need Triton to be imported."""

import triton
import triton.language as tl

from leansplit.noise import philox, stream
from leansplit.noise.seeds import STREAM_VERSION

_VERSION = tl.constexpr(STREAM_VERSION)
_M0, _M1 = map(tl.constexpr, philox._MULTIPLIERS)
_W0, _W1 = map(tl.constexpr, philox._WEYL)
_ROUNDS = tl.constexpr(philox._ROUNDS)
_SQRT_HALF_BITS = tl.constexpr(stream._SQRT_HALF_BITS)
_LOG_2 = tl.constexpr(float(stream._LOG_2))
_ANGLE_SCALE = tl.constexpr(float(stream._ANGLE_SCALE))
_L0, _L1, _L2, _L3 = (tl.constexpr(float(c)) for c in stream.LOG_COEFFICIENTS)
_S0, _S1, _S2, _S3 = (tl.constexpr(float(c)) for c in stream.SIN_COEFFICIENTS)
_C0, _C1, _C2, _C3, _C4 = (tl.constexpr(float(c)) for c in stream.COS_COEFFICIENTS)


@triton.jit
def _words(first, seed, COUNTERS: tl.constexpr):
    """Return the 4 COUNTERS words from Philox block ``first``, in the stream's order."""
    c0 = (first + 1 + tl.arange(0, COUNTERS)).to(tl.uint64)
    c1 = tl.zeros_like(c0)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    key0 = seed
    key1 = tl.zeros_like(seed) + _VERSION
    for _ in tl.static_range(_ROUNDS):
        high0 = tl.umulhi(c0, tl.full(c0.shape, _M0, tl.uint64))
        high1 = tl.umulhi(c2, tl.full(c0.shape, _M1, tl.uint64))
        low0 = c0 * _M0
        low1 = c2 * _M1
        c0 = high1 ^ c1 ^ key0
        c2 = high0 ^ c3 ^ key1
        c1 = low1
        c3 = low0
        key0 = key0 + _W0
        key1 = key1 + _W1
    return tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))


@triton.jit
def _gaussians(words):
    """Return two elements of each word; see :mod:`leansplit.noise.stream`."""
    low = (words & 0xFFFFFFFF).to(tl.uint32)
    scaled = ((low >> 8) + 1).to(tl.int32).to(tl.float32)  # exact: at most 2^24
    raw = scaled.to(tl.int32, bitcast=True)
    exponent = (raw - _SQRT_HALF_BITS) >> 23
    mantissa = (raw - (exponent << 23)).to(tl.float32, bitcast=True)
    numerator = mantissa - 1.0
    s = tl.div_rn(numerator, numerator + 2.0)
    z = s * s
    log_m = ((((z * _L3 + _L2) * z + _L1) * z + _L0) * z + 2.0) * s
    log_u = log_m + (exponent - 24).to(tl.float32) * _LOG_2
    radius = tl.sqrt_rn(log_u * -2.0)

    half_angle = (words >> 32).to(tl.uint32).to(tl.int32, bitcast=True).to(tl.float32)
    half_angle = half_angle * _ANGLE_SCALE
    z = half_angle * half_angle
    sine = (((z * _S3 + _S2) * z + _S1) * z + _S0) * half_angle
    cosine = (((z * _C4 + _C3) * z + _C2) * z + _C1) * z + _C0
    odd = sine * cosine * 2.0 * radius
    even = (sine * sine) * -2.0 + 1.0
    even = tl.where((low & 1) == 1, -even, even) * radius
    return tl.interleave(even, odd)


@triton.jit
def _signs(words, COUNTERS: tl.constexpr):
    """Return 64 elements of each word, 1 or -1."""
    bits = (words[:, None] >> tl.arange(0, 64).to(tl.uint64)[None, :]) & 1
    return tl.reshape(bits.to(tl.int32) * 2 - 1, (256 * COUNTERS,)).to(tl.float32)


@triton.jit
def add_scaled_kernel(
    base_pointer,
    out_pointer,
    seeds_pointer,
    scales_pointer,
    num_elements,
    first_block,
    num_directions,
    IS_RADEMACHER: tl.constexpr,
    IS_CUT_OFF: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    """Write base + sum of scale_p u_p; one program for each block of elements."""
    elements: tl.constexpr = COUNTERS * (256 if IS_RADEMACHER else 8)
    block = first_block + tl.program_id(0).to(tl.int64)
    offsets = block * elements + tl.arange(0, elements)
    if IS_CUT_OFF:
        total = tl.load(base_pointer + offsets, mask=offsets < num_elements, other=0.0)
    else:
        total = tl.load(base_pointer + offsets)
    for p in range(num_directions):
        seed = tl.load(seeds_pointer + p).to(tl.uint64, bitcast=True)
        words = _words(block * COUNTERS, seed, COUNTERS)
        u = _signs(words, COUNTERS) if IS_RADEMACHER else _gaussians(words)
        total = total + u * tl.load(scales_pointer + p)
    if IS_CUT_OFF:
        tl.store(out_pointer + offsets, total, mask=offsets < num_elements)
    else:
        tl.store(out_pointer + offsets, total)
