"""The only place that maps wire records to Flower messages and spells record keys."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

_PAYLOADS = "leansplit"
_FAILURES = "leansplit-failures"
_STYPE = "leansplit.safetensors"

NO_PLAN = "this node has no plan: it was restarted, or never set up"
"""The failure of a node that must be set up again."""

NODE = -1
"""Key of a payload addressed to the node as a whole, not to one of its clients."""


def pack(payloads: Mapping[int, bytes], failures: Mapping[int, str] | None = None) -> RecordDict:
    """Return a Flower record that holds one encoded wire record for each client.

    Args:
        payloads: client id -> encoded record.
        failures: client id -> what went wrong at that client; the others are not affected.
    """
    content = RecordDict(
        {
            _PAYLOADS: ArrayRecord(
                {
                    str(client_id): Array(
                        dtype="uint8", shape=(len(blob),), stype=_STYPE, data=blob
                    )
                    for client_id, blob in payloads.items()
                }
            )
        }
    )
    if failures:
        content[_FAILURES] = ConfigRecord({str(k): v for k, v in failures.items()})
    return content


def unpack(content: RecordDict) -> dict[int, bytes]:
    """Return client id -> encoded record; empty if the record is not one of ours."""
    if _PAYLOADS not in content.array_records:
        return {}
    return {int(key): array.data for key, array in content.array_records[_PAYLOADS].items()}


def unpack_failures(content: RecordDict) -> dict[int, str]:
    """Return client id -> what went wrong there."""
    if _FAILURES not in content.config_records:
        return {}
    return {int(key): str(value) for key, value in content.config_records[_FAILURES].items()}
