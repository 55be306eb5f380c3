"""Encoding of wire records: one safetensors blob each, so decoding never executes code.

The blob's tensors are the record's payload fields; its only string metadata maps the record's type
to its header fields as JSON (safetensors writes several entries in random order, and the same
record must give the same bytes). The price of a record is read off the encoded bytes themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from leansplit.wire.kinds import Kind
from leansplit.wire.records import KIND_KEY, MANY_KEY, Record

R = TypeVar("R", bound=Record)

_LENGTH_BYTES = 8  # safetensors: little-endian length of the JSON header, then the header
_MALFORMED = (AttributeError, KeyError, ValueError, TypeError, RecursionError)


class DecodeError(ValueError):
    """Bytes that are no valid record."""


def encode(record: Record) -> bytes:
    """Return the bytes that cross the wire for ``record``."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if KIND_KEY not in item.metadata:
            header[item.name] = value
        elif item.metadata[MANY_KEY]:
            tensors |= {f"{item.name}/{key}": t.contiguous() for key, t in value.items()}
        elif not _is_default(item, value):  # an absent tensor costs nothing
            tensors[item.name] = value.contiguous()
    metadata = {type(record).__name__: json.dumps(header, separators=(",", ":"))}
    return safetensors.torch.save(tensors, metadata)


def _is_default(item: dataclasses.Field[Any], value: Tensor) -> bool:
    """Say whether decoding would put the same empty tensor there by itself."""
    if value.numel() or item.default_factory is dataclasses.MISSING:
        return False
    default: Tensor = item.default_factory()
    return value.shape == default.shape and value.dtype == default.dtype


def decode(blob: bytes) -> Record:
    """Return the record that ``blob`` encodes.

    Raises:
        DecodeError: if the bytes are not a record of a known type with the right fields.
    """
    try:
        tensors = safetensors.torch.load(blob)
        ((type_name, text),) = _read_header(blob)["__metadata__"].items()
        record_type = Record.types[type_name]
        values: dict[str, Any] = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError("the header is no JSON object")
    except (SafetensorError, *_MALFORMED) as error:
        raise DecodeError(f"not a leansplit record: {error}") from error
    is_many = {
        f.name: f.metadata[MANY_KEY]
        for f in dataclasses.fields(record_type)
        if KIND_KEY in f.metadata
    }
    if misplaced := sorted(is_many.keys() & values.keys()):
        raise DecodeError(f"{record_type.__name__} has payload fields {misplaced} in its header")
    values |= {name: {} for name in is_many if is_many[name]}
    for name, tensor in sorted(tensors.items()):  # safetensors returns them in random order
        field_name, slash, key = name.partition("/")
        if is_many.get(field_name) is not bool(slash):
            raise DecodeError(f"{record_type.__name__} has no payload field {name!r}")
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


@functools.cache
def _header_types(record_type: type[Record]) -> Mapping[str, TypeAdapter[Any]]:
    """Return what reads the header fields of a record; JSON alone knows no types."""
    hints = get_type_hints(record_type)
    return {
        f.name: TypeAdapter(hints[f.name])
        for f in dataclasses.fields(record_type)
        if KIND_KEY not in f.metadata
    }


def decode_as(blob: bytes, expected: type[R] | tuple[type[R], ...]) -> R:
    """Decode a record and insist on its type.

    Raises:
        DecodeError: if it is none of the expected types.
    """
    record = decode(blob)
    if not isinstance(record, expected):
        raise DecodeError(f"got {type(record).__name__} where {expected} was expected")
    return record


def price(blob: bytes) -> dict[Kind, int]:
    """Return the bytes of an encoded record by kind; they sum to ``len(blob)``.

    Bytes that are no record crossed all the same: they are all envelope.
    """
    try:
        header = _read_header(blob)
        (type_name,) = header.pop("__metadata__")
        record_type = Record.types[type_name]
        kinds: Mapping[str, Kind] = {
            f.name: f.metadata[KIND_KEY]
            for f in dataclasses.fields(record_type)
            if KIND_KEY in f.metadata
        }
        priced: dict[Kind, int] = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if type(begin) is not int or type(end) is not int:
                raise TypeError("offsets count bytes")
            kind = kinds[name.partition("/")[0]]
            priced[kind] = priced.get(kind, 0) + end - begin
        priced["envelope"] = len(blob) - sum(priced.values())
    except _MALFORMED:
        priced = {}
    return priced if priced and min(priced.values()) >= 0 else {"envelope": len(blob)}


def _read_header(blob: bytes) -> dict[str, Any]:
    length = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + length])
    return header
