"""What a client remembers between messages: its plan and a few named tensors.

It lives in Flower's ``Context.state``, because a real SuperNode starts a new process for every
message. Stored as safetensors, so reading it never executes code.
"""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context
from torch import Tensor

from leansplit.wire import ClientPlan

_PLAN = "leansplit-plan"
_NOTES = "leansplit-notes"


def save_plan(context: Context, plan_json: str) -> None:
    """Remember the plan of the run that begins and forget everything of earlier runs."""
    context.state.clear()
    context.state[_PLAN] = ConfigRecord({"json": plan_json})


def load_plan(context: Context) -> ClientPlan | None:
    """Return the plan, or None if this node has not been set up (or was restarted)."""
    if _PLAN not in context.state.config_records:
        return None
    return ClientPlan.from_json(str(context.state.config_records[_PLAN]["json"]))


class ClientMemory:
    """One client's named tensors and numbers within its node's context."""

    def __init__(self, context: Context, client_id: int) -> None:
        self._state = context.state
        self._prefix = f"client-{client_id}-"

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors under ``name``, replacing what was there."""
        blob = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
        array = Array(dtype="uint8", shape=(len(blob),), stype="safetensors", data=blob)
        self._state[self._prefix + name] = ArrayRecord({"tensors": array})

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors under ``name``, or None."""
        records = self._state.array_records
        if self._prefix + name not in records:
            return None
        return safetensors.torch.load(records[self._prefix + name]["tensors"].data)

    def forget(self, name: str) -> None:
        """Drop the tensors under ``name`` if they are there."""
        if self._prefix + name in self._state:
            del self._state[self._prefix + name]

    def note(self, name: str, value: int) -> None:
        """Store a number."""
        key = self._prefix + _NOTES
        record = self._state.config_records.get(key, ConfigRecord())
        record[name] = value
        self._state[key] = record

    def noted(self, name: str, default: int) -> int:
        """Return a number, or ``default``."""
        record = self._state.config_records.get(self._prefix + _NOTES)
        if record is None or name not in record:
            return default
        return int(str(record[name]))
