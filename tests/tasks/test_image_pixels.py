"""Decoding and standardising: channels, sizes, unusable images, and the formula."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from leansplit.errors import UserError
from leansplit.tasks.image_pixels import Pixels, decode_pixels, standardise


def picture(mode: str = "RGB", *, size: int = 6, seed: int = 0, form: str = "PNG") -> bytes:
    """A random image of one Pillow mode, encoded."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    shape = (size, size, *channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return encode(pixels, form)


def encode(pixels: NDArray[np.generic], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


def decode(
    *encoded: bytes | None, image_size: int | None = None, like: Pixels | None = None
) -> Pixels:
    return decode_pixels(
        lambda: encoded,
        num_images=len(encoded),
        split="train" if like is None else "test",
        image_size=image_size,
        like=like,
    )


def test_lossless_pixels_come_back_exactly() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (5, 4, 7, 3), dtype=np.uint8)
    decoded = decode(*(encode(image) for image in pixels))
    assert np.array_equal(decoded.values, pixels)
    assert decoded.size == (4, 7)  # height first


def test_greyscale_stays_one_channel() -> None:
    assert decode(picture("L"), picture("L", seed=1)).values.shape == (2, 6, 6, 1)


@pytest.mark.parametrize("colour", ["RGB", "RGBA"])
def test_one_colour_image_makes_all_of_them_rgb(colour: str) -> None:
    decoded = decode(picture("L"), picture("L", seed=1), picture(colour))
    assert decoded.values.shape == (3, 6, 6, 3)
    assert np.array_equal(decoded.values[0, ..., 0], decoded.values[0, ..., 2])


def test_a_test_split_takes_the_training_channels() -> None:
    grey, colour = decode(picture("L")), decode(picture("RGB"))
    assert decode(picture("RGB"), like=grey).num_channels == 1
    assert decode(picture("L"), like=colour).num_channels == 3


def test_jpeg_is_detected_from_the_bytes() -> None:
    assert decode(picture(form="JPEG"), picture(), picture("L", form="JPEG")).num_jpeg == 2


def test_different_sizes_need_image_size() -> None:
    uneven = (picture(), picture(seed=1), picture(size=9))
    with pytest.raises(UserError, match=r"image 2 of split 'train' is 9x9 .* image_size=<pixels>"):
        decode(*uneven)
    assert decode(*uneven, image_size=5).size == (5, 5)


def test_test_images_must_have_the_training_size() -> None:
    with pytest.raises(UserError, match="image 0 of split 'test' is 7x7"):
        decode(picture(size=7), like=decode(picture()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not an image", "cannot decode image 1 of split 'train'"),
        (picture()[:60], "cannot decode image 1 of split 'train'"),
        (b"", "image 1 of split 'train' is empty"),
        (None, "image 1 of split 'train' is empty"),
        (encode(np.zeros((6, 6), dtype=np.uint16)), "8 bits per channel"),
    ],
)
def test_images_that_cannot_be_used(data: bytes | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode(picture(), data)


def test_no_images_at_all() -> None:
    with pytest.raises(UserError, match="split 'train' holds no images"):
        decode()


def test_standardise_equals_the_plain_formula() -> None:
    """More images than one block, so the blocks' seams are covered."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 200, (600, 3, 5, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (7, 3, 5, 3), dtype=np.uint8)
    scaled = train / 255.0
    mean, std = scaled.mean(axis=(0, 1, 2)), scaled.std(axis=(0, 1, 2))
    results = standardise(Pixels(values=train, num_jpeg=0), Pixels(values=test, num_jpeg=0))
    for pixels, result in zip((train, test), results, strict=True):
        assert result.dtype == torch.float32
        assert result.is_contiguous()
        expected = ((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_a_constant_channel_is_only_shifted() -> None:
    flat = Pixels(values=np.full((6, 4, 4, 3), 128, dtype=np.uint8), num_jpeg=0)
    assert torch.equal(standardise(flat, flat)[0], torch.zeros(6, 3, 4, 4))
