"""The stream is defined here a second time, slowly: Python integers and float32 scalars."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leansplit.errors import UserError
from leansplit.noise import (
    draw_perturbation,
    draw_perturbations,
    philox,
    stream,
    unfilled_vector,
)
from leansplit.parameters import ParameterSpec

SEEDS = (0, 1, 7, 2**32 - 1, 2**64 - 1)
CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]

# --- the slow derivation ------------------------------------------------------------------------

MASK = 2**64 - 1


def philox_block(counter, key):
    """Philox4x64-10 (Salmon et al., SC 2011, section 4.3) on Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


def slow_word(seed, index):
    version = 1
    return philox_block((index // 4 + 1, 0, 0, 0), (seed, version))[index % 4]


def f32(x):
    return np.float32(x)


def polynomial(x, *coefficients):
    """Horner's rule in float32, lowest coefficient first."""
    total = f32(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = f32(f32(total * x) + f32(coefficient))
    return total


def slow_pair(word):
    """Box-Muller on one word: (even element, odd element)."""
    low, high = word & 0xFFFF_FFFF, word >> 32
    # Radius sqrt(-2 ln u), u = k / 2^24 = m 2^(e - 24) with sqrt(1/2) <= m < sqrt(2).
    m, e = math.frexp((low >> 8) + 1)
    if m < f32(math.sqrt(0.5)):
        m, e = 2 * m, e - 1
    numerator = f32(f32(m) - f32(1))
    s = f32(numerator / f32(numerator + f32(2)))
    z = f32(s * s)
    log_m = f32(polynomial(z, 0.66666667, 0.40000121, 0.28550846, 0.23330261) * z)
    log_m = f32(f32(log_m + f32(2)) * s)
    log_u = f32(log_m + f32(f32(e - 24) * f32(0.6931471805599453)))
    radius = f32(np.sqrt(f32(log_u * f32(-2))))
    # Angle 2 t with t in [-pi/4, pi/4): the high half as a signed integer.
    signed = high - 2**32 if high >= 2**31 else high
    t = f32(f32(signed) * f32(math.pi / 4 / 2**31))
    z = f32(t * t)
    sine = f32(polynomial(z, 1.0, -0.16666651, 8.33203633e-3, -1.95039631e-4) * t)
    cosine = polynomial(z, 1.0, -0.499999996, 4.16666167e-2, -1.38866186e-3, 2.43798803e-5)
    sine_2t = f32(f32(sine * cosine) * f32(2))
    cosine_2t = f32(f32(f32(sine * sine) * f32(-2)) + f32(1))
    if low & 1:
        cosine_2t = f32(-cosine_2t)
    return f32(cosine_2t * radius), f32(sine_2t * radius)


def slow_gaussian(seed, start, stop):
    values = [slow_pair(slow_word(seed, i // 2))[i % 2] for i in range(start, stop)]
    return np.array(values, np.float32)


def slow_rademacher(seed, start, stop):
    bits = [slow_word(seed, i // 64) >> (i % 64) & 1 for i in range(start, stop)]
    return np.array([2 * bit - 1 for bit in bits], np.float32)


SLOW = {"gaussian": slow_gaussian, "rademacher": slow_rademacher}


def bits(values):
    """Return the exact little-endian bytes of a float32 tensor or array as hex."""
    return np.asarray(values, "<f4").tobytes().hex()


# --- golden bytes -------------------------------------------------------------------------------

GOLDEN_WORDS = {
    0: "d037f8c3f9a1d176 c057419b4c210765 abf13115117b0065 7bae035dea6ea5c0",
    1: "133d1b1836b49e25 fbd9ff744933275e f289b1b94ef9e741 b298f47f8b702464",
    7: "e1e9589fbf7f6f1d 5e794bda66c92f56 845eadf36d56f2f7 54f02c50b6b75554",
    2**32 - 1: "2a1e89c0764d0660 a0d5225abf0ee787 885603560a9453b8 59d2179bf293e1e6",
    2**64 - 1: "a7a2e8236bfb4443 c71a2ea098bcf226 2d2da51db1f0283d 0f3b034e0c89feec",
}
GOLDEN_GAUSSIAN = {
    0: "fc713f3e1e5bfebd538c8dbf735e8cbf1c4998bf927bfebf1f22b63cf181d63e",
    1: "92a2dabfd565d23eb148ca3f76e9a4bd31a2c1bf512281be5a2d243f308565bf",
    7: "fbea35bf10cd8cbe154f0a3fb87d9e3f02308fbddab8a6bf4c02d43eea90353f",
    2**32 - 1: "80448a3fc0301d3f449399be412734bffffc833e5bb720c0e0c2173e29ed953e",
    2**64 - 1: "cc3c1dbf71ad94bf274a473fbf4227bf3ea439bf7be6e53ea9741a4082ade93e",
}
GOLDEN_RADEMACHER = {
    0: "-++-+++-+---+-+++----+-++--+++++++----++---++++++++-++------+-++",
    1: "+-+--+---++++--+--+-++-+-++-++-----++---++-++---+-++++--++--+---",
    7: "+-+++---++++-++-+++++++-++++++-++++++--+---++-+-+--+-++++----+++",
    2**32 - 1: "-----++--++-----+-++--+--++-+++-------+++--+---+-++++----+-+-+--",
    2**64 - 1: "++----+---+---+-++-+++++++-+-++-++---+-----+-+++-+---+-++++--+-+",
}


def test_slow_philox_passes_the_published_known_answers():
    # Random123, tests/kat_vectors: "philox4x64 10", counter and key of zeros, ones and pi.
    assert philox_block((0,) * 4, (0,) * 2) == (
        *(0x16554D9ECA36314C, 0xDB20FE9D672D0FDC),
        *(0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    )
    assert philox_block((MASK,) * 4, (MASK,) * 2) == (
        *(0x87B092C3013FE90B, 0x438C3C67BE8D0224),
        *(0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    )
    counter = 0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89
    assert philox_block(counter, (0x452821E638D01377, 0xBE5466CF34E90C6C)) == (
        *(0xA528F45403E61D95, 0x38C72DBD566E9788),
        *(0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_golden_bytes(seed):
    golden = [int(word, 16) for word in GOLDEN_WORDS[seed].split()]
    assert [slow_word(seed, k) for k in range(4)] == golden
    assert stream.random_words(seed, 0, 4).tolist() == golden

    assert bits(slow_gaussian(seed, 0, 8)) == GOLDEN_GAUSSIAN[seed]
    assert bits(draw_perturbation(seed, 8)) == GOLDEN_GAUSSIAN[seed]

    signs = np.array([1 if sign == "+" else -1 for sign in GOLDEN_RADEMACHER[seed]], np.float32)
    assert bits(slow_rademacher(seed, 0, 64)) == bits(signs)
    assert bits(draw_perturbation(seed, 64, direction="rademacher")) == bits(signs)


@pytest.mark.parametrize("direction", ["gaussian", "rademacher"])
@pytest.mark.parametrize("start", [0, 1, 255, 4 * 10**9 + 3])
def test_long_draws_equal_the_slow_derivation(direction, start):
    stop = start + 200
    fast = draw_perturbation(2024, stop, direction=direction, start=start)
    assert bits(fast) == bits(SLOW[direction](2024, start, stop))


def test_the_extreme_words_are_finite_and_bounded():
    words = np.array([0, 2**32 - 1, 2**63, 2**64 - 1, 0xFF, 0x100, 0x7FFF_FFFF_0000_0001], "u8")
    out = np.empty(2 * words.size, np.float32)
    stream._PairBuffers(words.size).fill(words, out)
    slow = np.array([slow_pair(int(word)) for word in words], np.float32)
    assert bits(out) == bits(slow)
    assert np.isfinite(out).all()
    largest = math.sqrt(2 * 24 * math.log(2))  # the smallest u is 2^-24
    assert math.isclose(np.abs(out).max(), largest, rel_tol=1e-6)
    assert largest < 5.77


# --- slices, chunks and grouping ----------------------------------------------------------------


@given(
    size=st.integers(0, 700),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    direction=st.sampled_from(stream.DIRECTIONS),
    seed=st.sampled_from(SEEDS),
)
def test_a_slice_equals_the_whole(size, cuts, direction, seed):
    start, stop = sorted(round(cut * size) for cut in cuts)
    whole = draw_perturbation(seed, size, direction=direction)
    part = draw_perturbation(seed, size, direction=direction, start=start, stop=stop)
    assert whole.shape == (size,) and part.shape == (stop - start,)
    assert bits(part) == bits(whole[start:stop])


@pytest.mark.parametrize("chunk_words", [stream._CHUNK_WORDS, 16])
@pytest.mark.parametrize("direction", stream.DIRECTIONS)
def test_rows_drawn_together_are_those_drawn_alone(direction, chunk_words, monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK_WORDS", chunk_words)
    for start, stop in [(0, 41), (0, 8), (4, 11), (3, 9), (40, 41), (5, 5)]:
        part = {"direction": direction, "start": start, "stop": stop}
        rows = draw_perturbations(SEEDS, 41, **part)
        assert rows.shape == (len(SEEDS), stop - start)
        for row, seed in zip(rows, SEEDS, strict=True):
            assert bits(row) == bits(draw_perturbation(seed, 41, **part))
    assert draw_perturbations([], 41, direction=direction).shape == (0, 41)


@pytest.mark.parametrize(
    ("direction", "chunk"),
    [
        ("gaussian", 2 * stream._CHUNK_WORDS),
        ("sphere", 2 * stream._CHUNK_WORDS),
        ("unit_sphere", 2 * stream._CHUNK_WORDS),
        ("rademacher", 8 * stream._CHUNK_WORDS),
    ],
)
def test_chunks_leave_no_seams(direction, chunk):
    size = 2 * chunk + 5
    whole = draw_perturbation(5, size, direction=direction)
    for start, stop in [(chunk - 3, chunk + 3), (1, size), (chunk - 1, size - 1), (chunk, size)]:
        part = draw_perturbation(5, size, direction=direction, start=start, stop=stop)
        assert torch.equal(part, whole[start:stop])
    if direction in SLOW:
        for start in (chunk - 3, 2 * chunk - 3):
            slow = SLOW[direction](5, start, start + 6)
            assert bits(whole[start : start + 6]) == bits(slow)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_grouping_does_not_matter(sizes):
    """The stream laid over many parameters is the stream laid over one of the same size."""
    parameters = {f"{i:02}.weight": torch.zeros(n, 2) for i, n in enumerate(sizes)}
    spec = ParameterSpec.of(parameters)
    drawn = draw_perturbation(9, spec.num_elements)
    offset = 0
    for name, view in spec.views(drawn).items():
        alone = draw_perturbation(9, spec.num_elements, start=offset, stop=offset + view.numel())
        assert torch.equal(view.flatten(), alone), name
        offset += view.numel()
    assert bits(drawn) == bits(draw_perturbation(9, 2 * sum(sizes)))


def test_a_longer_vector_begins_like_a_shorter_one():
    for direction in ("gaussian", "rademacher"):
        short = draw_perturbation(3, 33, direction=direction)
        assert torch.equal(short, draw_perturbation(3, 97, direction=direction)[:33])


# --- the torch version --------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=30)
@given(
    seed=st.sampled_from(SEEDS) | st.integers(0, MASK),
    start=st.integers(0, 1000) | st.integers(2**33, 2**33 + 1000),
    size=st.integers(0, 300),
)
@example(seed=0, start=0, size=0)
@example(seed=2**32 - 1, start=3, size=64)
@example(seed=2**64 - 1, start=63, size=66)
def test_torch_words_gaussian_and_rademacher_equal_numpys(device, seed, start, size):
    stop = start + size
    words = philox.words(seed, start, size, torch.device(device))
    expected = stream.random_words(seed, start, size).astype(np.uint64)
    assert words.cpu().numpy().view(np.uint64).tolist() == expected.tolist()
    for direction, torch_version in (
        ("gaussian", philox.gaussian),
        ("rademacher", philox.rademacher),
    ):
        numpy_version = draw_perturbation(seed, stop, direction=direction, start=start)
        drawn = torch_version(seed, start, stop, torch.device(device))
        assert drawn.dtype == torch.float32 and drawn.shape == (size,)
        assert bits(drawn.cpu()) == bits(numpy_version)


@pytest.mark.parametrize("device", DEVICES)
def test_torch_gaussian_equals_numpys_over_many_exponents(device):
    size = 400_001
    drawn = philox.gaussian(11, 1, size, torch.device(device))
    assert torch.equal(drawn.cpu(), draw_perturbation(11, size, start=1))


@given(x=st.integers(0, MASK), multiplier=st.sampled_from(philox._MULTIPLIERS))
@example(x=MASK, multiplier=philox._MULTIPLIERS[0])
@example(x=0xFFFF_FFFF, multiplier=philox._MULTIPLIERS[1])
def test_wide_product(x, multiplier):
    high, low = philox._multiply_high_low(torch.tensor([philox._signed(x)]), multiplier)
    product = (high.item() & MASK) << 64 | low.item() & MASK
    assert product == x * multiplier


# --- distributions ------------------------------------------------------------------------------


def test_gaussian_moments():
    n = 400_000
    x = draw_perturbation(20240607, n).double()
    # Standard errors of the sample moments of N(0, 1): Var x^k = E x^2k - (E x^k)^2.
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(x.pow(power).mean().item() - mean) < 4 * math.sqrt(variance / n), power


@pytest.mark.parametrize("part", [slice(None), slice(0, None, 2), slice(1, None, 2)])
def test_gaussian_kolmogorov_smirnov(part):
    x = draw_perturbation(77, 200_000)[part].double().sort().values
    n = len(x)
    cdf = torch.special.ndtr(x)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((ranks[1:] - cdf).max().item(), (cdf - ranks[:-1]).max().item())
    assert distance * math.sqrt(n) < 1.63  # the 1 % point of Kolmogorov's distribution


def test_the_two_of_a_pair_and_their_squares_are_uncorrelated():
    even, odd = draw_perturbation(78, 400_000).double().view(-1, 2).unbind(1)
    n = len(even)
    assert abs((even * odd).mean().item()) < 4 / math.sqrt(n)
    covariance = ((even.square() - 1) * (odd.square() - 1)).mean().item()
    assert abs(covariance) < 4 * 2 / math.sqrt(n)
    quadrants = torch.bincount((even > 0).long() + 2 * (odd > 0).long(), minlength=4)
    assert (quadrants / n - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / n)


def test_rademacher_is_balanced_and_is_plus_minus_one():
    n = 400_000
    x = draw_perturbation(12, n, direction="rademacher")
    assert x.abs().eq(1).all()
    assert abs(x.double().mean().item()) < 4 / math.sqrt(n)
    per_bit = x[: n - n % 64].view(-1, 64).double().mean(0)
    assert per_bit.abs().max().item() < 4.5 / math.sqrt(n / 64)  # of 64 means


@pytest.mark.parametrize("size", [1, 2, 30, 5_001])
def test_sphere_has_norm_sqrt_d_and_the_gaussians_direction(size):
    sphere = draw_perturbation(4, size, direction="sphere")
    gaussian = draw_perturbation(4, size)
    assert math.isclose(sphere.double().norm().item(), math.sqrt(size), rel_tol=1e-6)
    ratio = sphere.double() / gaussian.double()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0)
    assert ratio[0] > 0


@pytest.mark.parametrize("size", [1, 2, 30, 5_001])
def test_unit_sphere_has_norm_1_and_the_spheres_direction(size):
    unit = draw_perturbation(4, size, direction="unit_sphere").double()
    sphere = draw_perturbation(4, size, direction="sphere").double()
    assert math.isclose(unit.norm().item(), 1, rel_tol=1e-6)
    torch.testing.assert_close(unit * math.sqrt(size), sphere, rtol=1e-6, atol=0)


def test_the_factor_d_goes_with_the_unit_sphere_alone():
    factors = {name: stream.second_moment_inverse(name, 200) for name in stream.DIRECTIONS}
    assert factors == {"gaussian": 1, "rademacher": 1, "sphere": 1, "unit_sphere": 200}


def test_distinct_seeds_give_uncorrelated_streams():
    n = 20_000
    # Neighbours and seeds that differ in one bit, low or high.
    seeds = [0, 1, 2, 3, 1 << 31, 1 << 32, 1 << 63, 0xFFFF_FFFF]
    for direction in ("gaussian", "rademacher"):
        rows = torch.stack([draw_perturbation(s, n, direction=direction) for s in seeds]).double()
        correlation = rows @ rows.T / n
        off_diagonal = correlation[~torch.eye(len(seeds), dtype=torch.bool)]
        assert off_diagonal.abs().max().item() < 4 / math.sqrt(n)


def test_a_stream_is_uncorrelated_with_itself_shifted():
    n = 100_000
    x = draw_perturbation(6, n + 256).double()
    for lag in (1, 2, 3, 4, 7, 8, 64, 128, 256):
        assert abs((x[:n] * x[lag : lag + n]).mean().item()) < 4 / math.sqrt(n), lag


# --- the polynomials ----------------------------------------------------------------------------

NODES = np.cos((2 * np.arange(2_000) + 1) * np.pi / 4_000)  # Chebyshev, in (-1, 1)
S_MAX = (math.sqrt(2) - 1) / (math.sqrt(2) + 1)
"""Largest |s| = |m - 1| / (m + 1) for sqrt(1/2) <= m < sqrt(2)."""


def least_squares(z, values, degree):
    powers = np.stack([z**k for k in range(degree + 1)], axis=1)
    return np.linalg.lstsq(powers, values, rcond=None)[0]


def evaluate(coefficients, z):
    return sum(float(c) * z**k for k, c in enumerate(coefficients))


def test_sine_and_cosine_coefficients_are_least_squares():
    z = (NODES + 1) / 2 * (np.pi / 4) ** 2  # z = t^2
    t = np.sqrt(z)
    for degree, values, coefficients in [
        (3, np.sin(t) / t, stream.SIN_COEFFICIENTS),
        (4, np.cos(t), stream.COS_COEFFICIENTS),
    ]:
        derived = least_squares(z, values, degree).astype(np.float32)
        assert [c.tobytes() for c in derived] == [c.tobytes() for c in coefficients]


def test_logarithm_coefficients_are_least_squares():
    z = (NODES + 1) / 2 * S_MAX**2
    # log((1+s)/(1-s)) = 2 (s + s^3/3 + s^5/5 + ...), so R(z) = 2/3 + 2z/5 + 2z^2/7 + ...
    remainder = sum(2 * z**k / (2 * k + 3) for k in range(25))
    derived = least_squares(z, remainder, 3)
    assert np.allclose(np.array(stream.LOG_COEFFICIENTS, float), derived, rtol=6e-5, atol=0)
    # The published coefficients are as good as the derived ones, far below float32's 6e-8.
    both = evaluate(stream.LOG_COEFFICIENTS, z) - evaluate(derived, z)
    assert np.abs(both * z**1.5).max() < 2e-10


def test_polynomial_errors_against_float64():
    s = np.linspace(-S_MAX, S_MAX, 20_001)
    z = s * s
    log = 2 * s + s * z * evaluate(stream.LOG_COEFFICIENTS, z)
    assert np.abs(log - np.log((1 + s) / (1 - s))).max() < 1.0e-9
    t = np.linspace(-np.pi / 4, np.pi / 4, 20_001)
    assert np.abs(t * evaluate(stream.SIN_COEFFICIENTS, t * t) - np.sin(t)).max() < 5e-9
    assert np.abs(evaluate(stream.COS_COEFFICIENTS, t * t) - np.cos(t)).max() < 5e-9


def test_gaussians_are_box_mullers_to_float32_accuracy():
    n = 200_000
    words = stream.random_words(1234, 0, n)
    u = (((words & np.uint64(0xFFFF_FFFF)) >> np.uint64(8)) + np.uint64(1)).astype(float) / 2**24
    radius = np.sqrt(-2 * np.log(u))
    angle = (words >> np.uint64(32)).astype(np.uint32).view(np.int32).astype(float)
    angle *= np.pi / 2 / 2**31
    sign = np.where(words & np.uint64(1), -1.0, 1.0)
    exact = np.stack([sign * radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
    drawn = draw_perturbation(1234, 2 * n).double().numpy()
    assert np.abs(drawn - exact).max() < 1e-6


# --- errors -------------------------------------------------------------------------------------


def test_errors():
    with pytest.raises(UserError, match=r"unknown direction 'gausian'; did you mean 'gaussian'"):
        draw_perturbation(0, 4, direction="gausian")
    for start, stop in [(-1, 2), (3, 2), (0, 5), (5, 5)]:
        with pytest.raises(ValueError, match=rf"slice \[{start}, {stop}\)"):
            draw_perturbation(0, 4, start=start, stop=stop)
    for seed in (-1, 2**64, 2**64 + 5):
        with pytest.raises(ValueError, match="seed"):
            draw_perturbation(seed, 4)


def test_unfilled_vectors_begin_where_torchs_own_do():
    """Kernels round by where memory begins; numpy's begins at any multiple of 16 bytes."""
    vectors = [unfilled_vector(size) for size in (0, 1, 100, 3000, 20_001, 2_000_000) * 4]
    assert {v.data_ptr() % 64 for v in vectors} == {0}
    assert [len(v) for v in vectors[:6]] == [0, 1, 100, 3000, 20_001, 2_000_000]
    for vector in vectors:
        vector.fill_(1.0)
        assert vector.untyped_storage().nbytes() == vector.nbytes
