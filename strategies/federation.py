"""Exchanges with the clients of a run: how to ask them all, and who failed and why."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from flwr.app import Message
from torch import Tensor

from leansplit.strategies.failures import SILENT, Failure
from leansplit.strategies.flower_records import pack, unpack, unpack_failures
from leansplit.strategies.roster import Roster
from leansplit.strategies.wanted import Read
from leansplit.wire import DecodeError, Record, encode

R = TypeVar("R", bound=Record)
log = logging.getLogger("leansplit")

_LISTED = 5  # clients named in one line of the log
_SAID = 10  # lines of the log for one exchange, less the one for all the rest


@dataclass(frozen=True)
class Replies(Generic[R]):
    """What came back from one exchange.

    Attributes:
        records: client id -> record, in ascending order of ids.
        failures: client id -> why there is no record, in ascending order of ids.
    """

    records: dict[int, R]
    failures: dict[int, Failure] = field(default_factory=dict)


class Federation(Roster):
    """Exchanges with any of the clients.

    A message addresses all clients of a node that are asked; one client per node is the plain case.
    """

    def messages(self, requests: Mapping[int, Record], action: str, round: int) -> list[Message]:
        """Return the messages that carry ``requests`` (client id -> record) to their nodes.

        Clients that cannot be reached get none, and so will not have answered. Clients that are
        told the same share one encoding: weights for thousands of them are in memory once.
        """
        of_node: dict[int, dict[int, bytes]] = {}
        encoded: dict[tuple[object, ...], bytes] = {}
        for client_id in self.reachable(sorted(requests)):
            record = requests[client_id]
            content = _content_of(record)
            if content not in encoded:
                encoded[content] = encode(record, has_mask=self.plan.has_mask)
            of_node.setdefault(self.node_of(client_id), {})[client_id] = encoded[content]
        return [
            Message(pack(payloads), node_id, f"train.{action}", group_id=str(round))
            for node_id, payloads in of_node.items()
        ]

    def failures(
        self,
        missing: Iterable[int],
        reasons: Mapping[int, Failure],
        node_errors: Mapping[int, Failure] = MappingProxyType({}),
    ) -> dict[int, Failure]:
        """Say, and log, why clients did not answer, in ascending order of their ids.

        Args:
            missing: clients without an answer.
            reasons: client id -> reason, of clients that reported one, or answered something else.
            node_errors: node id -> reason, of nodes that failed as a whole.
        """
        failures: dict[int, Failure] = {}
        for client_id in sorted(missing):
            node_id = self.node_of(client_id)
            failure = (
                reasons.get(client_id)
                or node_errors.get(node_id)
                or self.why_lost(node_id)
                or Failure(SILENT, "silent")
            )
            if failure.lacks_plan:
                self.lose_node(node_id, failure)
            failures[client_id] = failure
        _say(failures)
        return failures

    def collect(
        self, replies: Iterable[Message], expected_ids: Iterable[int], read: Read[R]
    ) -> Replies[R]:
        """Read replies and put them in order; whoever is missing is a failure with a reason.

        Args:
            replies: what came back.
            expected_ids: the clients that were asked.
            read: takes an answer for what was asked for, or refuses it; see
                :class:`leansplit.strategies.wanted.Wanted`.
        """
        expected = sorted(expected_ids)
        hosted: dict[int, list[int]] = {}
        for m in expected:
            hosted.setdefault(self.node_of(m), []).append(m)
        records: dict[int, R] = {}
        reasons: dict[int, Failure] = {}
        node_errors: dict[int, Failure] = {}
        for reply in replies:
            node_id = self.grid.sender_of(reply)
            if reply.has_error():
                node_errors[node_id] = Failure.of_node(str(reply.error.reason))
                continue
            said, answers = unpack_failures(reply.content), unpack(reply.content)
            spoken_for = hosted.get(node_id, [])  # a node speaks for nobody else's clients
            unasked = (said.keys() | answers.keys()) - set(spoken_for)
            self.grid.events["unasked_answers"] += len(unasked)
            for m in spoken_for:
                if m in said:
                    reasons[m] = Failure.reported(said[m])
                elif m in answers:
                    try:
                        self.require_size(len(answers[m]))
                        records[m] = read(m, answers[m])
                    except DecodeError as error:
                        reasons[m] = Failure.refused(error)
        answered = {m: records[m] for m in expected if m in records and m not in reasons}
        missing = [m for m in expected if m not in answered]
        return Replies(answered, self.failures(missing, reasons, node_errors))

    def exchange(
        self, requests: Mapping[int, Record], action: str, round: int, read: Read[R]
    ) -> Replies[R]:
        """Ask clients and wait for their answers; ``read`` as in :meth:`collect`."""
        if not requests:
            return Replies({})
        messages = self.messages(requests, action, round)
        replies = self.grid.send_and_receive(messages, timeout=self.timeout_s)
        return self.collect(replies, requests, read)


def _content_of(record: Record) -> tuple[object, ...]:
    """Return what is equal only for records of the same content: that hold the same objects.

    Of records that are all there: objects that are gone would lend their identity to others.
    """
    values = (getattr(record, field.name) for field in dataclasses.fields(record))
    return (type(record), *map(_identity, values))


def _identity(value: object) -> object:
    if isinstance(value, Tensor):
        return id(value) if value.numel() else (value.shape, value.dtype)
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return id(value) if value else len(value)
    return repr(value) if isinstance(value, float) else value  # 0.0 equals -0.0


def _say(failures: Mapping[int, Failure]) -> None:
    """Log who is dropped from a step, all clients with one reason in one line."""
    dropped: dict[str, list[int]] = {}
    for client_id, failure in failures.items():
        dropped.setdefault(str(failure), []).append(client_id)
    if len(dropped) > _SAID:
        rest = [dropped.pop(reason) for reason in list(dropped)[_SAID:]]
        dropped[f"{len(rest)} other reasons"] = sorted(m for ids in rest for m in ids)
    for reason, ids in dropped.items():
        listed = ", ".join(map(str, ids[:_LISTED])) + (", ..." if len(ids) > _LISTED else "")
        clients = f"client {listed}" if len(ids) == 1 else f"{len(ids)} clients ({listed})"
        log.warning("%s dropped from this step: %s", clients, reason)
