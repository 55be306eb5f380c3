"""Encoding of wire records: one safetensors blob each, so decoding never executes code.

The blob's tensors are the record's payload fields; its only string metadata maps the record's type
to its header fields as JSON (safetensors writes several entries in random order, and the same
record must give the same bytes). The price of a record is read off the encoded bytes themselves.

Where smashed data carry an attention mask (:mod:`leansplit.sequences`), hidden states and mask
travel as two tensors, the mask as ``<field>.mask`` with a byte for each position. The smashed
gradient travels without the mask's place, which is zero; an empty ``<field>.mask`` says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_type_hints

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from leansplit.sequences import pack, unpack
from leansplit.wire.kinds import Kind
from leansplit.wire.records import ALIKE_KEY, KIND_KEY, MANY_KEY, Record
from leansplit.wire.tensor_bytes import tensor_bytes

R = TypeVar("R", bound=Record)

_LENGTH_BYTES = 8  # safetensors: little-endian length of the JSON header, then the header
_LONGEST_HEADER = 2**24  # the largest models name their tensors in a fraction of this
_HEADER_ROOM, _ENTRY_ROOM = 2**18, 2**10  # of a header: header fields, and each tensor's entry
SPARE_TENSORS = 8
"""Tensors too many that are still read, so that the refusal can name them."""
_MASK = ".mask"
# RuntimeError: a shape whose strides overflow, and nesting that is too deep.
_MALFORMED = (AttributeError, KeyError, ValueError, TypeError, RuntimeError)


Rejection = Literal["encoding", "record", "shape", "value", "non_finite", "size"]
"""Why an answer is refused: no valid encoding; another record than asked for; other tensors, shapes
or types; other values; values that are not finite; too many bytes."""


class DecodeError(ValueError):
    """Bytes that are no valid record, or not the one that was asked for.

    Attributes:
        rejection: under which name that is counted.
    """

    def __init__(self, text: str, rejection: Rejection = "encoding") -> None:
        super().__init__(text)
        self.rejection: Rejection = rejection


def encode(record: Record, *, has_mask: bool = False) -> bytes:
    """Return the bytes that cross the wire for ``record``.

    Args:
        record: what to encode.
        has_mask: whether smashed data and their gradients have a place for an attention mask.
    """
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if KIND_KEY not in item.metadata:
            header[item.name] = value
        elif item.metadata[MANY_KEY]:
            for key, tensor in value.items():
                tensors |= _apart(f"{item.name}/{key}", tensor, item.metadata, has_mask=has_mask)
        elif not _is_default(item, value):  # an absent tensor costs nothing
            tensors |= _apart(item.name, value, item.metadata, has_mask=has_mask)
    metadata = {type(record).__name__: json.dumps(header, separators=(",", ":"))}
    return tensor_bytes(tensors, metadata)


def _is_default(item: dataclasses.Field[Any], value: Tensor) -> bool:
    """Say whether decoding would put the same empty tensor there by itself."""
    if value.numel() or item.default_factory is dataclasses.MISSING:
        return False
    default: Tensor = item.default_factory()
    return value.shape == default.shape and value.dtype == default.dtype


def _apart(
    name: str, value: Tensor, metadata: Mapping[str, Any], *, has_mask: bool
) -> dict[str, Tensor]:
    """Return the tensors that cross for one, by name: its mask, if it may hold one, is another."""
    if not (has_mask and _may_hold_mask(metadata)):
        return {name: value}
    hidden, mask = unpack(value)
    if metadata[KIND_KEY] == "smashed_gradient":
        mask = mask.new_empty(0)
    elif metadata[ALIKE_KEY]:
        mask = mask[0]
    return {name: hidden, f"{name}{_MASK}": mask.to(torch.uint8)}


def _together(name: str, tensors: dict[str, Tensor], metadata: Mapping[str, Any]) -> Tensor:
    """Undo :func:`_apart`.

    Raises:
        ValueError: if the mask does not belong to the tensor.
    """
    value, mask = tensors[name], tensors.get(f"{name}{_MASK}")
    if mask is None or not _may_hold_mask(metadata):
        return value
    positions = value.shape[:-1]
    if not value.numel() and positions.numel():  # a few bytes that would become any number of them
        raise ValueError("it has positions without hidden states")
    expected = positions[1:] if metadata[ALIKE_KEY] else positions
    if metadata[KIND_KEY] == "smashed_gradient":
        expected = torch.Size([0])
    if mask.dtype != torch.uint8 or mask.shape != expected or (mask > 1).any():
        raise ValueError("its mask is not one of zeros and ones for every position")
    if metadata[KIND_KEY] == "smashed_gradient":
        return pack(value, value.new_zeros(positions))
    return pack(value, mask.expand(positions))


def header_limit(most_tensors: int) -> int:
    """Return the bytes of header that a record of so many tensors has at most."""
    return min(_LONGEST_HEADER, _HEADER_ROOM + _ENTRY_ROOM * most_tensors)


def decode(blob: bytes, most_tensors: int | None = None) -> Record:
    """Return the record that ``blob`` encodes.

    An entry of the header costs a multiple of its bytes once it is read, and a tensor without
    elements a thousand. So headers are bounded before they are read, and the number of tensors
    before they are loaded.

    Args:
        blob: the bytes.
        most_tensors: that the record may have, attention masks included; None: as many as fit into
            the longest header, for readers that trust the sender.

    Raises:
        DecodeError: if the bytes are not a record of a known type with the right fields.
    """
    limit = _LONGEST_HEADER if most_tensors is None else header_limit(most_tensors)
    try:
        entries = _read_header(blob, limit)
        ((type_name, text),) = entries["__metadata__"].items()
        record_type = Record.types[type_name]
        _require_few(record_type, len(entries) - 1, most_tensors)
        tensors = safetensors.torch.load(blob)
        values: dict[str, Any] = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError("the header is no JSON object")
    except DecodeError:
        raise
    except (SafetensorError, *_MALFORMED) as error:
        raise DecodeError(f"not a leansplit record: {error}") from error
    fields = _payload_fields(record_type)  # type: ignore[arg-type]
    is_many = {name: metadata[MANY_KEY] for name, metadata in fields.items()}
    if misplaced := sorted(is_many.keys() & values.keys()):
        raise DecodeError(f"{record_type.__name__} has payload fields {misplaced} in its header")
    values |= {name: {} for name in is_many if is_many[name]}
    for name in sorted(tensors):  # safetensors returns them in random order
        field_name, slash, key = name.partition("/")
        metadata: Mapping[str, Any] = fields.get(field_name.removesuffix(_MASK), {})
        is_mask = name.endswith(_MASK) and name.removesuffix(_MASK) in tensors
        if is_mask and _may_hold_mask(metadata):
            continue  # joined to what it is the mask of
        if is_many.get(field_name) is not bool(slash):
            raise DecodeError(f"{record_type.__name__} has no payload field {name!r}")
        try:
            tensor = _together(name, tensors, metadata)
        except (ValueError, RuntimeError) as error:
            raise DecodeError(f"{record_type.__name__}.{name}: {error}") from error
        if slash:
            values[field_name][key] = tensor
        else:
            values[field_name] = tensor
    for name, adapter in _header_types(record_type).items():  # type: ignore[arg-type]
        if name in values:
            try:
                values[name] = adapter.validate_python(values[name], strict=True)
            except ValidationError as error:
                detail = error.errors()[0]["msg"].lower()
                raise DecodeError(f"{record_type.__name__}.{name}: {detail}") from error
    try:
        return record_type(**values)
    except TypeError as error:
        raise DecodeError(f"{record_type.__name__}: {error}") from error


def _require_few(record_type: type[Record], num_tensors: int, most: int | None) -> None:
    """Refuse more tensors than a kind of record has, each with a mask, or than are wanted.

    Raises:
        DecodeError: saying so.
    """
    fields = _payload_fields(record_type)  # type: ignore[arg-type]
    if not any(metadata[MANY_KEY] for metadata in fields.values()):
        of_kind = 2 * len(fields) + SPARE_TENSORS
        most = of_kind if most is None else min(most, of_kind)
    if most is not None and num_tensors > most:
        raise DecodeError(f"it has {num_tensors} tensors, and at most {most} are possible", "size")


def _may_hold_mask(metadata: Mapping[str, Any]) -> bool:
    """Say whether tensors of a field have a place for an attention mask, where there are masks."""
    return metadata.get(KIND_KEY) in ("smashed_data", "smashed_gradient")


@functools.cache
def _payload_fields(record_type: type[Record]) -> Mapping[str, Mapping[str, Any]]:
    """Return name -> metadata of the fields that are tensors."""
    return {f.name: f.metadata for f in dataclasses.fields(record_type) if KIND_KEY in f.metadata}


@functools.cache
def _header_types(record_type: type[Record]) -> Mapping[str, TypeAdapter[Any]]:
    """Return what reads the header fields of a record; JSON alone knows no types."""
    hints = get_type_hints(record_type)
    return {
        f.name: TypeAdapter(hints[f.name])
        for f in dataclasses.fields(record_type)
        if KIND_KEY not in f.metadata
    }


def decode_as(
    blob: bytes, expected: type[R] | tuple[type[R], ...], most_tensors: int | None = None
) -> R:
    """Decode a record and insist on its type; ``most_tensors`` as in :func:`decode`.

    Raises:
        DecodeError: if it is none of the expected types.
    """
    record = decode(blob, most_tensors)
    if not isinstance(record, expected):
        raise DecodeError(f"got {type(record).__name__} where {expected} was expected", "record")
    return record


def price(blob: bytes, longest_header: int = _LONGEST_HEADER) -> dict[Kind, int]:
    """Return the bytes of an encoded record by kind; they sum to ``len(blob)``.

    Bytes that are no record crossed all the same: they are all envelope. So are those of a record
    whose header is longer than ``longest_header``.
    """
    try:
        header = _read_header(blob, longest_header)
        (type_name,) = header.pop("__metadata__")
        record_type = Record.types[type_name]
        payloads = _payload_fields(record_type)  # type: ignore[arg-type]
        kinds: Mapping[str, Kind] = {name: fields[KIND_KEY] for name, fields in payloads.items()}
        priced: dict[Kind, int] = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if type(begin) is not int or type(end) is not int:
                raise TypeError("offsets count bytes")
            kind = kinds[name.partition("/")[0].removesuffix(_MASK)]
            if name.endswith(_MASK) and kind in ("smashed_data", "smashed_gradient"):
                kind = "masks"
            priced[kind] = priced.get(kind, 0) + end - begin
        priced["envelope"] = len(blob) - sum(priced.values())
    except _MALFORMED:
        priced = {}
    return priced if priced and min(priced.values()) >= 0 else {"envelope": len(blob)}


def _read_header(blob: bytes, longest: int) -> dict[str, Any]:
    length = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    if length > longest:
        raise ValueError(f"a header of {length} bytes, and at most {longest} are possible")
    header: dict[str, Any] = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + length])
    return header
