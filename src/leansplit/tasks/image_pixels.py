"""From encoded image files to standardised tensors: decode, check sizes, convert, standardise.

Shapes: ``n`` images of ``H`` x ``W`` pixels with ``C`` channels (1 greyscale, 3 RGB).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leansplit.errors import UserError

_JPEG_FORMATS = frozenset({"JPEG", "MPO"})  # what Pillow found from the bytes, not the file name
_BLOCK = 256  # images standardised at a time
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})

EncodedImages = Callable[[], Iterable[bytes | None]]
"""Starts an iteration over the encoded bytes of every image; None where an image is missing."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images of one split."""

    values: NDArray[np.uint8]
    """[n, H, W, C]."""

    num_jpeg: int
    """How many were encoded as JPEG."""

    @property
    def num_channels(self) -> int:
        """C: 1 or 3."""
        return int(self.values.shape[-1])

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.values.shape[1], self.values.shape[2]


class _ColourFoundError(Exception):
    """A colour image among images taken for greyscale so far."""


def decode_pixels(
    encoded: EncodedImages,
    *,
    num_images: int,
    split: str,
    image_size: int | None,
    like: Pixels | None = None,
) -> Pixels:
    """Decode all images of one split.

    Images become greyscale if all of them are, else RGB; transparency is dropped.

    Args:
        encoded: the encoded images; iterated again if colour turns up late.
        num_images: how many there are, at least 1.
        split: the split's name, for errors.
        image_size: height and width to resize to, in pixels; None requires one size throughout.
        like: the training split, whose size and channels a test split must take.

    Raises:
        UserError: if an image is missing, cannot be decoded, has more than 8 bits per channel, or
            differs in size from the others.
    """
    size = like.size if like is not None else None
    if image_size is not None:
        size = (image_size, image_size)
    decoder = _Decoder(num_images, split, size, is_resizing=image_size is not None)
    if like is not None:
        return decoder.decode(encoded(), "L" if like.num_channels == 1 else "RGB")
    try:
        return decoder.decode(encoded(), None)
    except _ColourFoundError:
        return decoder.decode(encoded(), "RGB")


@dataclass(frozen=True)
class _Decoder:
    """Decodes one split into one array, image by image."""

    num_images: int

    split: str

    size: tuple[int, int] | None
    """(H, W) required, or resized to; None takes that of the first image."""

    is_resizing: bool

    def decode(self, encoded: Iterable[bytes | None], mode: str | None) -> Pixels:
        """Decode to ``mode`` ("L" or "RGB"); None means greyscale until a colour image is met.

        Raises:
            _ColourFoundError: at the first colour image after greyscale ones, if mode is None.
        """
        values: NDArray[np.uint8] | None = None
        num_jpeg, size, is_mode_given = 0, self.size, mode is not None
        for index, data in enumerate(encoded):
            image = self._open(data, index)
            is_grey = self._is_grey(image, index)
            if mode is None:
                mode = "L" if is_grey else "RGB"
            elif mode == "L" and not is_grey and not is_mode_given:
                raise _ColourFoundError
            size = size or (image.height, image.width)
            converted = self._convert(image, mode, size, index)
            if values is None:
                values = np.empty((self.num_images, *size, 1 if mode == "L" else 3), np.uint8)
            # tobytes is about a third faster than numpy's array protocol for small images.
            flat = np.frombuffer(converted.tobytes(), dtype=np.uint8)
            values[index] = flat.reshape(values.shape[1:])
            num_jpeg += image.format in _JPEG_FORMATS
        if values is None:
            raise UserError(f"split {self.split!r} holds no images")
        return Pixels(values=values, num_jpeg=num_jpeg)

    def _open(self, data: bytes | None, index: int) -> Image.Image:
        if not data:
            raise UserError(f"image {index} of split {self.split!r} is empty")
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"cannot decode image {index} of split {self.split!r}: {error}"
            ) from error
        return image

    def _is_grey(self, image: Image.Image, index: int) -> bool:
        if image.mode in _GREY_MODES:
            return True
        if image.mode in _COLOUR_MODES:
            return False
        raise UserError(
            f"image {index} of split {self.split!r} has pixel format {image.mode!r}; save the "
            "images with 8 bits per channel, as greyscale or RGB"
        )

    def _convert(
        self, image: Image.Image, mode: str, size: tuple[int, int], index: int
    ) -> Image.Image:
        converted = image if image.mode == mode else image.convert(mode)
        found = (image.height, image.width)
        if found == size:
            return converted
        if not self.is_resizing:
            raise UserError(
                f"image {index} of split {self.split!r} is {found[0]}x{found[1]} pixels (height x "
                f"width), but the first training image is {size[0]}x{size[1]}; give "
                "image_size=<pixels> to resize all of them"
            )
        return converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def standardise(train: Pixels, test: Pixels) -> tuple[Tensor, Tensor]:
    """Return both splits as [n, C, H, W] float32 with the training set's mean 0 and deviation 1.

    Per channel c: (x - mean_c) / std_c, over all pixels of all training images, in float64. A
    channel of one value only is shifted, not scaled. An 8-bit pixel has 256 possible results, so
    the formula is evaluated 256 times per channel and then looked up: exact and fast.
    """
    num_channels = train.num_channels
    levels = np.arange(256, dtype=np.float64) / 255.0
    tables = np.empty((num_channels, 256), dtype=np.float32)
    for channel in range(num_channels):
        counts = np.zeros(256, dtype=np.int64)
        for block in _blocks(len(train.values)):
            counts += np.bincount(train.values[block, :, :, channel].ravel(), minlength=256)
        shares = counts / counts.sum()
        mean = float(shares @ levels)
        std = float(np.sqrt(shares @ (levels - mean) ** 2))
        tables[channel] = (levels - mean) / (std if std > 1e-12 else 1.0)
    return _look_up(tables, train.values), _look_up(tables, test.values)


def _look_up(tables: NDArray[np.float32], values: NDArray[np.uint8]) -> Tensor:
    """Return tables[c, values[n, h, w, c]] as [n, C, H, W]."""
    num_images, height, width, num_channels = values.shape
    result = np.empty((num_images, num_channels, height, width), dtype=np.float32)
    for block in _blocks(num_images):
        for channel in range(num_channels):
            # Every index is in range; "clip" lets NumPy write to ``out`` without a buffer.
            indices = values[block, :, :, channel]
            np.take(tables[channel], indices, out=result[block, channel], mode="clip")
    return torch.from_numpy(result)


def _blocks(num_images: int) -> Iterator[slice]:
    """Yield slices of a few hundred images: work that fits the processor's cache is far faster."""
    for start in range(0, num_images, _BLOCK):
        yield slice(start, start + _BLOCK)
