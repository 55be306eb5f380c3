"""Encoding of wire records: one safetensors blob each, so decoding never executes code.

The blob's tensors are the record's payload fields; its string metadata holds the record's type
and, as JSON, its header fields. The price of a record is read off the encoded bytes themselves.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from leansplit.wire import records
from leansplit.wire.kinds import Kind
from leansplit.wire.records import KIND_KEY, MANY_KEY, Record

R = TypeVar("R", bound=Record)

_TYPE = "record"
_HEADER = "header"
_LENGTH_BYTES = 8  # safetensors: little-endian length of the JSON header, then the header

RECORD_TYPES: Final[dict[str, type[Record]]] = {
    name: value
    for name, value in vars(records).items()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
}


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
        elif value.numel():  # an absent tensor costs nothing
            tensors[item.name] = value.contiguous()
    metadata = {_TYPE: type(record).__name__, _HEADER: json.dumps(header, separators=(",", ":"))}
    return safetensors.torch.save(tensors, metadata)


def decode(blob: bytes) -> Record:
    """Return the record that ``blob`` encodes.

    Raises:
        DecodeError: if the bytes are not a record of a known type with the right fields.
    """
    try:
        tensors = safetensors.torch.load(blob)
        metadata = _read_header(blob)["__metadata__"]
        record_type = RECORD_TYPES[metadata[_TYPE]]
        values: dict[str, Any] = json.loads(metadata[_HEADER])
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DecodeError(f"not a leansplit record: {error}") from error
    payload_fields = {f.name: f for f in dataclasses.fields(record_type) if KIND_KEY in f.metadata}
    for name in payload_fields:
        if payload_fields[name].metadata[MANY_KEY]:
            values[name] = {}
    for name, tensor in tensors.items():
        field_name, _, key = name.partition("/")
        if field_name not in payload_fields:
            raise DecodeError(f"{record_type.__name__} has no payload field {field_name!r}")
        if payload_fields[field_name].metadata[MANY_KEY]:
            values[field_name][key] = tensor
        else:
            values[field_name] = tensor
    try:
        return record_type(**values)
    except TypeError as error:
        raise DecodeError(f"{record_type.__name__}: {error}") from error


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
    """Return the bytes of an encoded record by kind; they sum to ``len(blob)``."""
    header = _read_header(blob)
    metadata = header.pop("__metadata__")
    kinds: Mapping[str, Kind] = {
        f.name: f.metadata[KIND_KEY]
        for f in dataclasses.fields(RECORD_TYPES[metadata[_TYPE]])
        if KIND_KEY in f.metadata
    }
    priced: dict[Kind, int] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = kinds[name.partition("/")[0]]
        priced[kind] = priced.get(kind, 0) + end - begin
    priced["envelope"] = len(blob) - sum(priced.values())
    return priced


def _read_header(blob: bytes) -> dict[str, Any]:
    length = int.from_bytes(blob[:_LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(blob[_LENGTH_BYTES : _LENGTH_BYTES + length])
    return header
