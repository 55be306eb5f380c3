"""What a wire record is: a frozen dataclass whose tensors say what they are booked under.

A field made with :func:`payload` holds tensors and says under which kind the ledger books them;
all other fields are small header values and belong to the envelope.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from leansplit.errors import UserError
from leansplit.wire.kinds import KINDS, Kind

KIND_KEY = "leansplit.kind"
MANY_KEY = "leansplit.many"
ALIKE_KEY = "leansplit.alike"
_READ_BY_PASSES: Final[tuple[Kind, ...]] = ("smashed_data", "labels", "masks", "smashed_gradient")


def payload(kind: Kind, *, many: bool = False, alike: bool = False, **options: Any) -> Any:
    """Declare a tensor field booked under ``kind``.

    Args:
        kind: what the ledger calls it.
        many: the field is a dictionary of tensors.
        alike: the tensor stacks smashed data of one batch, whose attention mask is the same.
        options: as of ``dataclasses.field``.
    """
    return field(metadata={KIND_KEY: kind, MANY_KEY: many, ALIKE_KEY: alike}, **options)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of all wire records. A subclass is known to the codec by its name."""

    types: ClassVar[dict[str, type[Record]]] = {}
    """Class name -> class, of every record that can cross."""

    continues_round: ClassVar[bool] = False
    """Of requests: whether other exchanges of the same round come before."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the class known to the codec.

        Raises:
            UserError: if another module has a record of that name.
        """
        super().__init_subclass__(**kwargs)
        other = Record.types.get(cls.__name__)
        if other is not None and other.__module__ != cls.__module__:
            raise UserError(
                f"a record named {cls.__name__} exists in {other.__module__}; choose another name"
            )
        Record.types[cls.__name__] = cls


Payloads = Mapping[str, Tensor]
"""The tensors of one field, by name."""


def moved(record: Record, device: torch.device) -> Record:
    """Return a record with what passes of a model read on ``device``; on the CPU all of it.

    Elsewhere seeds and scalars, which are read as numbers, stay where they are, and so do weights:
    who takes them decides where they are trained.
    """
    wanted = KINDS if device.type == "cpu" else _READ_BY_PASSES

    def change(kind: Kind, tensors: Payloads) -> Payloads | None:
        if kind not in wanted or all(tensor.device == device for tensor in tensors.values()):
            return None
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    return with_payloads(record, change)


def kinds_of(record: Record) -> set[Kind]:
    """Return the kinds under which a record's tensors are booked."""
    found = (part.metadata.get(KIND_KEY) for part in dataclasses.fields(record))
    return {kind for kind in found if kind is not None}


def with_payloads(record: Record, change: Callable[[Kind, Payloads], Payloads | None]) -> Record:
    """Return a record with other tensors, or the record itself if none is changed.

    Args:
        record: stays as it is.
        change: (kind, the tensors of a field) -> what takes their place, under the same names;
            None leaves them.
    """
    changes: dict[str, object] = {}
    for part in dataclasses.fields(record):
        kind = part.metadata.get(KIND_KEY)
        if kind is None:
            continue
        value = getattr(record, part.name)
        changed = change(kind, value if part.metadata[MANY_KEY] else {part.name: value})
        if changed is not None:
            changes[part.name] = changed if part.metadata[MANY_KEY] else changed[part.name]
    return dataclasses.replace(record, **changes) if changes else record
