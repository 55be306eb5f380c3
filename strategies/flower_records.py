"""The only place that maps wire records to Flower messages and spells record keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter, ValidationError

from leansplit.zeroth_order import JointPassChoice

_PAYLOADS = "leansplit"
_FAILURES = "leansplit-failures"
_WATCHED = "leansplit-watched"
_COSTS = "leansplit-costs"
_CHOICES = "leansplit-joint-passes"
_STYPE = "leansplit.safetensors"
_LONGEST_TEXT = 300
_LONGEST_JSON = 2**20
_MOST = 2**63 - 1  # JSON has numbers that no result could hold, or be written with
_MOST_DIMENSIONS = 16
_LARGEST_SPEEDUP = 1e6
_ID = re.compile(r"-1|0|[1-9][0-9]{0,17}")  # as `pack` writes them; less than 2^63

METRICS = "metrics"
"""The record of a FedAvg client's metrics, as Flower's own examples call it."""
NUM_SAMPLES = "num-examples"
"""The metric that FedAvg weights by, as Flower calls it."""
TRAIN_LOSS = "train-loss"
"""The metric that holds a FedAvg client's loss."""

NO_PLAN = "this node has no plan: it was restarted, or never set up"
"""The failure of a node that must be set up again."""

IN_PROCESS = "in-process"
"""Key of the configuration of nodes that are function calls in the server's process."""

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
    payloads = content.array_records[_PAYLOADS]
    return {int(key): array.data for key, array in payloads.items() if _is_id(key)}


def unpack_failures(content: RecordDict) -> dict[int, str]:
    """Return client id -> what went wrong there."""
    if _FAILURES not in content.config_records:
        return {}
    failures = content.config_records[_FAILURES]
    return {
        int(key): printable(value) if isinstance(value, str) else "it does not say why"
        for key, value in failures.items()
        if _is_id(key)
    }


def printable(text: str) -> str:
    """Return beginning and end of what a peer says as one line that a log or terminal can take."""
    if len(text) > _LONGEST_TEXT:
        half = _LONGEST_TEXT // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(character if character.isprintable() else " " for character in text)


_Count = Annotated[int, Field(ge=0, le=_MOST)]


@dataclass(frozen=True)
class CostReport:
    """What one message cost the client that answered it, by its own count.

    Attributes:
        flops: without ``repeated_flops``.
        repeated_flops: of passes that messages alone make necessary.
        peak_memory_bytes: live tensor storage at its peak.
        batches: local step -> shape of the inputs that it ran on.
    """

    flops: _Count
    repeated_flops: _Count
    peak_memory_bytes: _Count
    batches: dict[_Count, Annotated[tuple[_Count, ...], Field(max_length=_MOST_DIMENSIONS)]]


_REPORT: Final = TypeAdapter(CostReport)
_FOUND: Final = TypeAdapter(list[JointPassChoice])


def with_watch(content: RecordDict, client_id: int) -> RecordDict:
    """Return a request that also asks one of its clients to count what the answer costs it."""
    return RecordDict({**content, _WATCHED: ConfigRecord({"client-id": client_id})})


def take_watch(content: RecordDict) -> int | None:
    """Remove what :func:`with_watch` added, if it is there; return the client."""
    asked = content.pop(_WATCHED, None)
    return int(str(asked["client-id"])) if isinstance(asked, ConfigRecord) else None


def with_costs(content: RecordDict, report: CostReport | None) -> RecordDict:
    """Add a client's report to its answer, if it has one; it is neither payload nor priced."""
    if report is not None:
        content[_COSTS] = ConfigRecord({"json": _REPORT.dump_json(report).decode()})
    return content


def take_costs(content: RecordDict) -> CostReport | None:
    """Remove a client's report; None if there is none, or none that can be read."""
    try:
        return _REPORT.validate_json(_json_of(content.pop(_COSTS, None)))
    except ValidationError:
        return None


def with_choices(content: RecordDict, choices: Sequence[JointPassChoice]) -> RecordDict:
    """Add to an answer which batches its process found to be better run together."""
    if choices:
        content[_CHOICES] = ConfigRecord({"json": _FOUND.dump_json(list(choices)).decode()})
    return content


def take_choices(content: RecordDict) -> list[JointPassChoice]:
    """Remove what :func:`with_choices` added; empty if there is nothing that can be read."""
    try:
        found = _FOUND.validate_json(_json_of(content.pop(_CHOICES, None)))
    except ValidationError:
        return []
    return [choice for choice in found if _is_sane(choice)]


def _is_sane(choice: JointPassChoice) -> bool:
    """Say whether a choice can be told in a line: it comes from a peer."""
    is_short = len(choice.shape) <= _MOST_DIMENSIONS and all(0 <= n <= _MOST for n in choice.shape)
    return is_short and 2 <= choice.joined <= _MOST and 0 < choice.speedup < _LARGEST_SPEEDUP


def _json_of(record: object) -> str:
    """Return the JSON that a record of ours holds; empty if it holds none, or too much."""
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    return text if isinstance(text, str) and len(text) <= _LONGEST_JSON else ""


def _is_id(key: str) -> bool:
    """Say whether a key names a client or the node; a peer may send anything."""
    return _ID.fullmatch(key) is not None
