"""What a client remembers, handed to the server for safe keeping, and given back."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from leansplit.wire.records.base import Record, payload


@dataclass(frozen=True, kw_only=True)
class DepositRequest(Record):
    """Server to client: hand over what you remember."""


@dataclass(frozen=True, kw_only=True)
class DepositReply(Record):
    """Client to server: all that it remembers between rounds."""

    memory: dict[str, Tensor] = payload("checkpoint", many=True, default_factory=dict)
    """Name -> bytes as the client stores them, uint8 [n]; the server never looks inside."""
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RestoreRequest(Record):
    """Server to client: remember this again."""

    memory: dict[str, Tensor] = payload("checkpoint", many=True, default_factory=dict)
    """As it was handed over."""
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RestoreReply(Record):
    """Client to server: done."""
