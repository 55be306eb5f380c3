"""What a client remembers between messages: its plan and a few named tensors.

It lives in Flower's ``Context.state``, because a real SuperNode starts a new process for every
message. Stored as safetensors, so reading it never executes code.
"""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from torch import Tensor

from leansplit.allocation import allocated_as
from leansplit.devices import CPU
from leansplit.telling import leave_out
from leansplit.wire import ClientPlan, tensor_bytes

_PLAN = "leansplit-plan"
_TENSORS = "tensors-of-"
_NOTES = "notes-of-"


def save_plan(context: Context, plan_json: str) -> None:
    """Remember the plan of the run that begins and forget everything of earlier runs."""
    context.state.clear()
    context.state[_PLAN] = ConfigRecord({"json": plan_json})


def load_plan(context: Context) -> ClientPlan | None:
    """Return the plan, or None if this node has not been set up (or was restarted)."""
    record = _record(context.state, _PLAN)
    return None if record is None else ClientPlan.from_json(str(record["json"]))


def _record(state: RecordDict, key: str) -> ConfigRecord | None:
    """Return one record of the state.

    Flower's views by type, such as ``state.config_records``, copy every record at every access:
    on a node that hosts many clients that costs more than the clients' work.
    """
    record = state.get(key)
    return record if isinstance(record, ConfigRecord) else None


class ClientMemory:
    """One client's named tensors and numbers within its node's context.

    A record of the context holds what all clients of the node keep under one name. In a simulation
    the context crosses to a worker process and back with every message: a few large records cost
    next to nothing there, a few for each client more than the work of those that were asked.
    """

    def __init__(self, context: Context, client_id: int) -> None:
        self._state = context.state
        self._key = str(client_id)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors under ``name``, replacing what was there."""
        with allocated_as(None):
            stored = {key: tensor.to(CPU) for key, tensor in tensors.items()}
        self._keep(_TENSORS + name, tensor_bytes(stored))

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors under ``name``, on the CPU, or None."""
        blob = self._held(_TENSORS + name)
        if not isinstance(blob, bytes):
            return None
        tensors = safetensors.torch.load(blob)
        leave_out(tensors.values())  # they are copied to where a device holds them all along
        return tensors

    def forget(self, name: str) -> None:
        """Drop the tensors under ``name`` if they are there."""
        record = _record(self._state, _TENSORS + name)
        if record is not None and self._key in record:
            del record[self._key]

    def note(self, name: str, value: int) -> None:
        """Store a number."""
        self._keep(_NOTES + name, value)

    def noted(self, name: str, default: int) -> int:
        """Return a number, or ``default``."""
        value = self._held(_NOTES + name)
        return value if isinstance(value, int) else default

    def blobs(self) -> dict[str, Tensor]:
        """Return all stored tensors by name, each entry as the bytes that hold it (uint8 [n])."""
        return {
            name: torch.frombuffer(bytearray(blob), dtype=torch.uint8)
            for name, blob in self._all(_TENSORS).items()
            if isinstance(blob, bytes)
        }

    def notes(self) -> dict[str, int]:
        """Return all numbers by name."""
        return {n: value for n, value in self._all(_NOTES).items() if isinstance(value, int)}

    def replace(self, blobs: Mapping[str, Tensor], notes: Mapping[str, int]) -> None:
        """Forget everything, then remember what :meth:`blobs` and :meth:`notes` returned."""
        for record in self._state.values():
            if isinstance(record, ConfigRecord) and self._key in record:
                del record[self._key]
        for name, blob in blobs.items():
            self._keep(_TENSORS + name, blob.numpy().tobytes())
        for name, value in notes.items():
            self.note(name, value)

    def _keep(self, key: str, value: bytes | int) -> None:
        record = _record(self._state, key)
        if record is None:
            self._state[key] = record = ConfigRecord()
        record[self._key] = value

    def _held(self, key: str) -> object:
        record = _record(self._state, key)
        return None if record is None else record.get(self._key)

    def _all(self, prefix: str) -> dict[str, object]:
        """Return name -> what this client keeps in the records whose keys begin so."""
        keys = [key for key in self._state if key.startswith(prefix)]
        held = {key.removeprefix(prefix): self._held(key) for key in keys}
        return {name: value for name, value in held.items() if value is not None}
