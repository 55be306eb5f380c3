"""What a record must look like: shapes and element types of its tensors, values of its fields.

The codec tells whether bytes are a record; a form tells whether the record is the one that was
asked for. Who asks says so before anything is computed with an answer.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from leansplit.sequences import IGNORED
from leansplit.wire.codec import SPARE_TENSORS, DecodeError
from leansplit.wire.records import KIND_KEY, Record

NON_FINITE_ADVICE: Final = "lower the learning rates, or check that client's data"
ANY: Final = -1
"""A dimension of any size, such as the length of a batch of sequences."""


@dataclass(frozen=True)
class TensorForm:
    """Shape and element type of a tensor.

    Attributes:
        shape: all dimensions; ``ANY`` where a dimension may have any size.
        dtype: element type.
        num_classes: elements are class indices below this; 0: any value will do.
        may_be_ignored: elements may also be ``IGNORED``, the label that a loss leaves out.
        longest: of a dimension of any size; 0: no limit.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    num_classes: int = 0
    may_be_ignored: bool = False
    longest: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> TensorForm:
        """Return the form that ``tensor`` has."""
        return cls(tuple(tensor.shape), tensor.dtype)

    def stacked(self, *leading: int) -> TensorForm:
        """Return the form of so many of these: ``leading`` dimensions come first."""
        return dataclasses.replace(self, shape=(*leading, *self.shape))

    def require(self, what: str, tensor: Tensor) -> None:
        """Raise ``DecodeError`` unless ``tensor``, called ``what``, has this form."""
        fits = len(tensor.shape) == len(self.shape) and all(
            wanted in (ANY, size) for wanted, size in zip(self.shape, tensor.shape, strict=True)
        )
        if tensor.dtype != self.dtype or not fits:
            raise DecodeError(f"{what} is {TensorForm.of(tensor)}, not {self}", "shape")
        if self.longest and max(self.open_sizes(tensor), default=0) > self.longest:
            raise DecodeError(
                f"{what} is {TensorForm.of(tensor)}, and sequences have at most {self.longest} "
                "positions",
                "shape",
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DecodeError(f"{what} is non-finite; {NON_FINITE_ADVICE}", "non_finite")
        if self.num_classes and self.may_be_ignored:
            tensor = tensor[tensor != IGNORED]
        if self.num_classes and tensor.numel():
            lowest, highest = int(tensor.min()), int(tensor.max())
            if lowest < 0 or highest >= self.num_classes:
                raise DecodeError(
                    f"{what} holds values from {lowest} to {highest}, not class indices below "
                    f"{self.num_classes}",
                    "value",
                )

    def open_sizes(self, tensor: Tensor) -> set[int]:
        """Return the sizes of the dimensions that may have any, of a tensor of this form."""
        pairs = zip(self.shape, tensor.shape, strict=True)
        return {size for wanted, size in pairs if wanted == ANY}

    def __str__(self) -> str:
        """Return such as ``float32 [8, 16, 4, 4]``."""
        shape = ", ".join("any" if size == ANY else str(size) for size in self.shape)
        return f"{str(self.dtype).removeprefix('torch.')} [{shape}]"


ABSENT = TensorForm((0,))
"""The form of a payload field that is left at its default, ``torch.empty(0)``."""

Form = Mapping[str, TensorForm | Mapping[str, TensorForm] | int | str]
"""Field -> what it must be: the form of a tensor, of every tensor by name, or a header's value."""


def forms_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorForm]:
    """Return the forms that named tensors have."""
    return {name: TensorForm.of(tensor) for name, tensor in tensors.items()}


def most_tensors(form: Form) -> int:
    """Return how many tensors a record may have to be read and held against ``form``.

    Each may come with a mask, and some too many are read, so that the refusal can name them.
    """
    parts = (part for part in form.values() if isinstance(part, TensorForm | Mapping))
    return (
        2 * sum(1 if isinstance(part, TensorForm) else len(part) for part in parts) + SPARE_TENSORS
    )


def require_form(record: Record, form: Form) -> None:
    """Insist that a record is what ``form`` says.

    Dimensions of any size have one size: those of all its tensors, or in fields of many tensors of
    those with the same name.

    Raises:
        DecodeError: naming the first field that is not.
        TypeError: if the form leaves out a payload field, or has one that the record has not.
    """
    fields = {item.name: item for item in dataclasses.fields(record)}
    tensors = {name for name, item in fields.items() if KIND_KEY in item.metadata}
    if wrong := sorted((tensors - form.keys()) | (form.keys() - fields.keys())):
        raise TypeError(f"the form of a {type(record).__name__} does not match its fields {wrong}")
    sizes: defaultdict[str, set[int]] = defaultdict(set)  # of a sequence, by what it is part of
    for name, wanted in form.items():
        what, value = f"{type(record).__name__}.{name}", getattr(record, name)
        if isinstance(wanted, TensorForm):
            wanted.require(what, value)
            sizes[""] |= wanted.open_sizes(value)
        elif isinstance(wanted, Mapping):
            require_forms(what, value, wanted)
            for key, part in wanted.items():
                sizes[key] |= part.open_sizes(value[key])
        elif value != wanted:
            raise DecodeError(f"{what} is {value!r}, not {wanted!r}", "value")
    for found in sizes.values():
        if len(found) > 1:
            what = f"{type(record).__name__} has sequences of different lengths: {sorted(found)}"
            raise DecodeError(f"{what}; those of one batch have one length", "shape")
    for name in fields.keys() - form.keys():
        value = getattr(record, name)
        if isinstance(value, float) and not math.isfinite(value):
            what = f"{type(record).__name__}.{name}"
            raise DecodeError(f"{what} is non-finite ({value}); {NON_FINITE_ADVICE}", "non_finite")


def require_forms(
    what: str, tensors: Mapping[str, Tensor], forms: Mapping[str, TensorForm]
) -> None:
    """Raise ``DecodeError`` unless ``tensors`` are exactly those of ``forms``."""
    if missing := forms.keys() - tensors.keys():
        raise DecodeError(f"{what} lacks {_few(missing)}", "shape")
    if unexpected := tensors.keys() - forms.keys():
        raise DecodeError(f"{what} has unknown tensors: {_few(unexpected)}", "shape")
    for name, form in forms.items():
        form.require(f"{what} {name!r}", tensors[name])


def _few(names: Iterable[str], at_most: int = 3) -> str:
    ordered = sorted(names)
    more = len(ordered) - at_most
    return ", ".join(map(repr, ordered[:at_most])) + (f" and {more} more" if more > 0 else "")
