"""What a client remembers between messages: its plan and a few named tensors.

It lives in Flower's ``Context.state``, because a real SuperNode starts a new process for every
message. Stored as safetensors, so reading it never executes code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from torch import Tensor

from leansplit.telling import leave_out
from leansplit.wire import ClientPlan, tensor_bytes

R = TypeVar("R", ArrayRecord, ConfigRecord)

_PLAN = "leansplit-plan"
_NOTES = "leansplit-notes"


def save_plan(context: Context, plan_json: str) -> None:
    """Remember the plan of the run that begins and forget everything of earlier runs."""
    context.state.clear()
    context.state[_PLAN] = ConfigRecord({"json": plan_json})


def load_plan(context: Context) -> ClientPlan | None:
    """Return the plan, or None if this node has not been set up (or was restarted)."""
    record = _record(context.state, _PLAN, ConfigRecord)
    return None if record is None else ClientPlan.from_json(str(record["json"]))


def _record(state: RecordDict, key: str, kind: type[R]) -> R | None:
    """Return one record of the state.

    Flower's views by type, such as ``state.config_records``, copy every record at every access:
    on a node that hosts many clients that costs more than the clients' work.
    """
    record = state.get(key)
    return record if isinstance(record, kind) else None


class ClientMemory:
    """One client's named tensors and numbers within its node's context."""

    def __init__(self, context: Context, client_id: int) -> None:
        self._state = context.state
        self._prefix = f"client-{client_id}-"

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors under ``name``, replacing what was there."""
        self._keep(name, tensor_bytes(tensors))

    def _keep(self, name: str, blob: bytes) -> None:
        array = Array(dtype="uint8", shape=(len(blob),), stype="safetensors", data=blob)
        self._state[self._prefix + name] = ArrayRecord({"tensors": array})

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors under ``name``, or None."""
        record = _record(self._state, self._prefix + name, ArrayRecord)
        if record is None:
            return None
        tensors = safetensors.torch.load(record["tensors"].data)
        leave_out(tensors.values())  # they are copied to where a device holds them all along
        return tensors

    def forget(self, name: str) -> None:
        """Drop the tensors under ``name`` if they are there."""
        if self._prefix + name in self._state:
            del self._state[self._prefix + name]

    def note(self, name: str, value: int) -> None:
        """Store a number."""
        key = self._prefix + _NOTES
        record = _record(self._state, key, ConfigRecord) or ConfigRecord()
        record[name] = value
        self._state[key] = record

    def noted(self, name: str, default: int) -> int:
        """Return a number, or ``default``."""
        record = _record(self._state, self._prefix + _NOTES, ConfigRecord)
        if record is None or name not in record:
            return default
        return int(str(record[name]))

    def blobs(self) -> dict[str, Tensor]:
        """Return all stored tensors by name, each entry as the bytes that hold it (uint8 [n])."""
        blobs: dict[str, Tensor] = {}
        for key in self._keys():
            record = _record(self._state, key, ArrayRecord)
            if record is not None:
                data = bytearray(record["tensors"].data)
                blobs[key.removeprefix(self._prefix)] = torch.frombuffer(data, dtype=torch.uint8)
        return blobs

    def notes(self) -> dict[str, int]:
        """Return all numbers by name."""
        record = _record(self._state, self._prefix + _NOTES, ConfigRecord) or ConfigRecord()
        return {name: int(str(value)) for name, value in record.items()}

    def replace(self, blobs: Mapping[str, Tensor], notes: Mapping[str, int]) -> None:
        """Forget everything, then remember what :meth:`blobs` and :meth:`notes` returned."""
        for key in self._keys():
            del self._state[key]
        for name, blob in blobs.items():
            self._keep(name, blob.numpy().tobytes())
        for name, value in notes.items():
            self.note(name, value)

    def _keys(self) -> list[str]:
        return [key for key in self._state if key.startswith(self._prefix)]
