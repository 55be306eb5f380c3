"""THE noise stream: a seed and an index give a number, on every device the same bits.

Definition (version 1). Word k of seed s is the k-th 64-bit output of Philox4x64-10 with key
(s, version) and a counter that starts at 1 (Salmon et al., SC 2011; numpy's ``Philox``).
Element i of the infinite stream is

* Gaussian: word ``i // 2`` gives one Box-Muller pair; even elements take the cosine, odd ones
  the sine. Of the low 32 bits, the upper 24 give the radius and the lowest one the sign of the
  cosine; the high 32 bits give the angle. Logarithm, sine and cosine are fixed polynomials
  evaluated with float32 additions, multiplications and divisions only, each rounded as IEEE 754
  asks, so every device that follows the standard draws the same bits; math libraries differ in
  the last place. Values lie within +-5.77.
* Rademacher: bit ``i % 64`` of word ``i // 64``, 1 -> +1, 0 -> -1.
* Sphere: the Gaussian vector scaled to length sqrt(d), so E[u u^T] = I and no factor d is needed.
* Unit sphere: the Gaussian vector scaled to length 1, so E[u u^T] = I / d; estimates need the
  factor d (:func:`second_moment_inverse`).

A perturbation of a parameter set is the stream laid over its parameters in canonical order
(:class:`leansplit.parameters.ParameterSpec`), so any slice can be drawn alone and grouping does
not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leansplit.errors import require_choice
from leansplit.noise import philox
from leansplit.noise.seeds import STREAM_VERSION

Direction = Literal["gaussian", "rademacher", "sphere", "unit_sphere"]
DIRECTIONS: Final[tuple[str, ...]] = get_args(Direction)

_F = np.float32
_is_blank: list[bool] = []
_WORDS_PER_PHILOX_BLOCK = 4
_ALIGNED_ELEMENTS: Final = 16  # 64 bytes, as torch's allocator aligns
_CHUNK_WORDS = 65536  # measured: smaller pays for calls, larger for memory traffic

# log((1+s)/(1-s)) = 2s + s z R(z), z = s^2, for sqrt(1/2) <= m < sqrt(2); sin t and cos t for
# |t| <= pi/4. Least squares on 2,000 Chebyshev nodes, rounded to float32 (derivation and error
# bounds in tests/noise/test_stream.py).
LOG_COEFFICIENTS: Final = tuple(_F(c) for c in (0.66666667, 0.40000121, 0.28550846, 0.23330261))
SIN_COEFFICIENTS: Final = tuple(_F(c) for c in (1.0, -0.16666651, 8.33203633e-3, -1.95039631e-4))
COS_COEFFICIENTS: Final = tuple(
    _F(c) for c in (1.0, -0.49999999600, 4.16666167e-2, -1.38866186e-3, 2.43798803e-5)
)
_SQRT_HALF_BITS: Final = 0x3F3504F3  # float32 bits of sqrt(1/2)
_LOG_2: Final = _F(0.6931471805599453)
_ANGLE_SCALE: Final = _F(np.pi / 4 * 2.0**-31)  # int32 -> half the angle, in [-pi/4, pi/4)


def draw_perturbation(
    seed: int,
    num_elements: int,
    *,
    direction: Direction = "gaussian",
    start: int = 0,
    stop: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw elements ``start`` to ``stop`` of the perturbation of ``num_elements`` parameters.

    Args:
        seed: the perturbation seed, in [0, 2**64).
        num_elements: d, the size of the whole parameter set.
        direction: the distribution; all but ``unit_sphere`` have E[u u^T] = I.
        start: first element, 0-based.
        stop: one past the last element; default ``num_elements``.
        device: where to draw; the same bits everywhere (sphere: up to the last place of its
            norm, which is a float64 sum).

    Returns:
        float32 tensor of shape [stop - start].

    Raises:
        UserError: for an unknown direction.
        ValueError: if the slice does not lie within the parameter set, or the seed not within
            64 bits.
    """
    require_choice("direction", direction, DIRECTIONS)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed} is not within [0, 2**64)")
    stop = num_elements if stop is None else stop
    if not 0 <= start <= stop <= num_elements:
        raise ValueError(f"slice [{start}, {stop}) is not within [0, {num_elements})")
    if _is_blank:
        drawn = torch.empty(stop - start, device=device)
    elif torch.device(device).type == "cpu":
        drawn = unfilled_vector(stop - start)
        if direction == "rademacher":
            _fill_rademacher(seed, start, drawn.numpy())
        else:
            _fill_gaussian(seed, start, drawn.numpy())
    elif direction == "rademacher":
        drawn = philox.rademacher(seed, start, stop, torch.device(device))
    else:
        drawn = philox.gaussian(seed, start, stop, torch.device(device))
    if direction in ("sphere", "unit_sphere"):
        whole = (
            drawn
            if (start, stop) == (0, num_elements)
            else draw_perturbation(seed, num_elements, device=device)
        )
        norm = whole.double().square_().sum().sqrt().item()
        length = float(np.sqrt(num_elements)) if direction == "sphere" else 1.0
        drawn = drawn * (length / norm) if norm > 0 else drawn
    return drawn


def draw_perturbations(
    seeds: Sequence[int],
    num_elements: int,
    *,
    direction: Direction = "gaussian",
    start: int = 0,
    stop: int | None = None,
    device: torch.device | str = "cpu",
    memory: Tensor | None = None,
) -> Tensor:
    """Draw the same elements of many perturbations: row s is :func:`draw_perturbation` of seed s.

    Short slices of many seeds cost little more than a long one of one. Arguments as there; and
    ``memory``, float32 [len(seeds) * (stop - start + 1)] or longer on ``device``, to draw into:
    memory that is fresh each time costs a good part of drawing into it.

    Returns:
        float32 tensor of shape [len(seeds), stop - start].
    """
    stop = num_elements if stop is None else stop
    width = stop - start + (stop - start) % 2
    if memory is None:
        memory = torch.empty(len(seeds) * width, device=device)
    rows = memory[: len(seeds) * width].view(len(seeds), width)
    is_gaussian_on_cpu = direction == "gaussian" and torch.device(device).type == "cpu"
    if is_gaussian_on_cpu and start % 2 == 0 and width <= 2 * _CHUNK_WORDS and not _is_blank:
        _fill_gaussian_rows(seeds, start, rows.numpy())
        return rows[:, : stop - start]
    for row, seed in zip(rows, seeds, strict=True):
        row[: stop - start] = draw_perturbation(
            seed, num_elements, direction=direction, start=start, stop=stop, device=device
        )
    return rows[:, : stop - start]


def unfilled_vector(num_elements: int, device: torch.device | str = "cpu") -> Tensor:
    """Return float32 [num_elements] with any values in it, to be written as a whole.

    On a CPU the memory is numpy's, which asks for huge pages where the system has them: to touch
    10,000,000 elements for the first time in pages of 4 KiB takes a third of the time of drawing
    them (docs/results/performance.md). It begins where torch's own would, at a multiple of 64
    bytes: kernels may round differently from another start, and parameters lie in it.
    """
    if _is_blank or torch.device(device).type != "cpu":
        return torch.empty(num_elements, device=device)
    memory = np.empty(num_elements + _ALIGNED_ELEMENTS, _F)
    first = -memory.ctypes.data // memory.itemsize % _ALIGNED_ELEMENTS
    return torch.from_numpy(memory[first : first + num_elements])


@contextmanager
def blank_noise() -> Iterator[None]:
    """Draw no values inside the block, only tensors of the right size: to plan, never to train."""
    _is_blank.append(True)
    try:
        yield
    finally:
        _is_blank.pop()


def second_moment_inverse(direction: Direction, num_elements: int) -> int:
    """Return the factor c for which E[c u u^T] = I: d on the unit sphere, else 1.

    An estimate of a gradient multiplies by it. Gaussian directions with the factor d would be d
    times too long; keeping factor and distribution in one place rules that out.
    """
    return num_elements if direction == "unit_sphere" else 1


def random_words(seed: int, start: int, count: int) -> npt.NDArray[np.uint64]:
    """Return words ``start`` to ``start + count`` of the stream of ``seed``."""
    generator, skip = _generator_at(seed, start)
    words: npt.NDArray[np.uint64] = generator.random_raw(skip + count)
    return words[skip:]


def _generator_at(seed: int, word: int) -> tuple[np.random.Philox, int]:
    """Return a generator at the Philox block of ``word`` and the words to skip within it."""
    block, skip = divmod(word, _WORDS_PER_PHILOX_BLOCK)
    return np.random.Philox(key=seed | (STREAM_VERSION << 64), counter=block), skip


def _fill_rademacher(seed: int, start: int, out: npt.NDArray[np.float32]) -> None:
    first_word = start // 64
    chunk = 64 * _CHUNK_WORDS // 8
    position = first_word * 64
    while position < start + out.size:
        count = min(chunk, start + out.size - position)
        words = random_words(seed, position // 64, -(-count // 64)).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:count].view(np.int8)
        np.left_shift(bits, 1, out=bits)
        np.subtract(bits, 1, out=bits)
        skip = max(0, start - position)
        target = position + skip - start
        out[target : target + count - skip] = bits[skip:]
        position += chunk


def _fill_gaussian(seed: int, start: int, out: npt.NDArray[np.float32]) -> None:
    position = start - start % 2
    end = start + out.size
    pairs = _PairBuffers(min(_CHUNK_WORDS, (end - position + 1) // 2))
    generator, skip_words = _generator_at(seed, position // 2)
    generator.random_raw(skip_words, output=False)
    while position < end:
        count = min(2 * _CHUNK_WORDS, end - position)
        num_words = (count + 1) // 2
        words = generator.random_raw(num_words)
        if position >= start and count % 2 == 0:
            target = position - start
            pairs.fill(words, out[target : target + count])
        else:  # a ragged end: draw whole pairs, keep what was asked for
            whole = np.empty(2 * num_words, _F)
            pairs.fill(words, whole)
            skip = max(0, start - position)
            target = position + skip - start
            out[target : target + count - skip] = whole[skip:count]
        position += count


def _fill_gaussian_rows(seeds: Sequence[int], start: int, rows: npt.NDArray[np.float32]) -> None:
    """Fill each row, of at most 2 ``_CHUNK_WORDS`` elements, from an even ``start``."""
    num_words = rows.shape[1] // 2
    at_once = max(1, _CHUNK_WORDS // max(1, num_words))
    words, pairs = np.empty((at_once, num_words), np.uint64), _PairBuffers(at_once * num_words)
    for first in range(0, len(seeds), at_once):
        group = seeds[first : first + at_once]
        for row, seed in zip(words, group, strict=False):
            row[:] = random_words(seed, start // 2, num_words)
        filled = rows[first : first + len(group)]
        pairs.fill(words[: len(group)].reshape(-1), filled.reshape(-1))


class _PairBuffers:
    """Box-Muller on 64-bit words in scratch memory that is allocated once per draw."""

    def __init__(self, num_words: int) -> None:
        self._int_a, self._int_b = (np.empty(num_words, np.int32) for _ in range(2))
        self._floats = tuple(np.empty(num_words, _F) for _ in range(4))

    def fill(self, words: npt.NDArray[np.uint64], out: npt.NDArray[np.float32]) -> None:
        """Write the 2 n Gaussians of n words to ``out``."""
        n = words.size
        bits, exponent = self._int_a[:n], self._int_b[:n]
        a, b, radius, c = (buffer[:n] for buffer in self._floats)
        halves = words.astype("<u8", copy=False).view("<u4").reshape(-1, 2)

        # Radius sqrt(-2 ln u), u = (k + 1) / 2^24 with k the upper 24 of the low 32 bits.
        np.right_shift(halves[:, 0], 8, out=bits.view(np.uint32))
        np.add(bits, 1, out=bits)
        np.copyto(a, bits, casting="unsafe")  # exact: at most 2^24
        np.subtract(a.view(np.int32), _SQRT_HALF_BITS, out=bits)
        np.right_shift(bits, 23, out=exponent)
        np.left_shift(exponent, 23, out=bits)
        np.subtract(a.view(np.int32), bits, out=a.view(np.int32))  # mantissa m
        np.subtract(exponent, 24, out=exponent)
        np.copyto(c, exponent, casting="unsafe")
        np.subtract(a, _F(1), out=a)
        np.add(a, _F(2), out=b)
        np.divide(a, b, out=a)  # s = (m - 1) / (m + 1)
        np.multiply(a, a, out=b)
        _horner(b, LOG_COEFFICIENTS, radius)
        np.multiply(radius, b, out=radius)
        np.add(radius, _F(2), out=radius)
        np.multiply(radius, a, out=radius)  # ln m
        np.multiply(c, _LOG_2, out=c)
        np.add(radius, c, out=radius)
        np.multiply(radius, _F(-2), out=radius)
        np.sqrt(radius, out=radius)

        # Half angle t: sin 2t = 2 sin t cos t, cos 2t = 1 - 2 sin^2 t, which covers the right
        # half of the circle; a random sign on the cosine covers the left.
        np.copyto(a, halves[:, 1].view(np.int32), casting="unsafe")
        np.multiply(a, _ANGLE_SCALE, out=a)
        np.multiply(a, a, out=b)
        _horner(b, SIN_COEFFICIENTS, c)
        np.multiply(c, a, out=c)  # sin t
        _horner(b, COS_COEFFICIENTS, a)  # cos t
        np.multiply(c, a, out=a)
        np.multiply(a, _F(2), out=a)
        np.multiply(a, radius, out=out[1::2])
        np.multiply(c, c, out=c)
        np.multiply(c, _F(-2), out=c)
        np.add(c, _F(1), out=c)
        np.left_shift(halves[:, 0].view(np.int32), 31, out=bits)
        np.bitwise_xor(c.view(np.int32), bits, out=c.view(np.int32))
        np.multiply(c, radius, out=out[0::2])


def _horner(
    x: npt.NDArray[np.float32],
    coefficients: tuple[np.float32, ...],
    out: npt.NDArray[np.float32],
) -> None:
    """Evaluate the polynomial (lowest coefficient first) at ``x`` into ``out``."""
    *low, highest = coefficients
    np.multiply(x, highest, out=out)
    for index, coefficient in enumerate(reversed(low)):
        if index:
            np.multiply(out, x, out=out)
        np.add(out, coefficient, out=out)
