"""The clients of a run: who they are, where they can be reached, and how to ask them all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from leansplit.errors import RunFailedError
from leansplit.strategies.flower_records import (
    NO_PLAN,
    NODE,
    pack,
    unpack,
    unpack_failures,
)
from leansplit.strategies.observed_grid import ObservedGrid
from leansplit.wire import (
    ClientPlan,
    DecodeError,
    Record,
    SetupReply,
    SetupRequest,
    decode_as,
    encode,
    price,
)

R = TypeVar("R", bound=Record)
log = logging.getLogger("leansplit")

SETUP_ROUND = 0
_SETTLED_S = 1.0  # SuperNodes register one by one; this long without a new one ends the wait


def connected_nodes(grid: Grid, at_least: int, timeout_s: float) -> list[int]:
    """Wait until enough SuperNodes are connected and no more come, and return their ids.

    A run may start while nodes are still registering: what is there at first is not all.

    Raises:
        RunFailedError: if fewer than ``at_least`` connect within ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    node_ids: list[int] = []
    last_change = time.monotonic()
    while True:
        now = sorted(grid.get_node_ids())
        if now != node_ids:
            node_ids, last_change = now, time.monotonic()
        if len(node_ids) >= max(1, at_least) and time.monotonic() - last_change >= _SETTLED_S:
            return node_ids
        if time.monotonic() > deadline:
            raise RunFailedError(
                f"only {len(node_ids)} of {max(1, at_least)} SuperNodes connected within "
                f"{timeout_s:.0f} s; start more, or lower the cohort"
            )
        time.sleep(0.05)


@dataclass(frozen=True)
class Replies(Generic[R]):
    """What came back from one exchange.

    Attributes:
        records: client id -> record, in ascending order of ids.
        failures: client id -> why there is no record, in ascending order of ids.
    """

    records: dict[int, R]
    failures: dict[int, str] = field(default_factory=dict)


class Federation:
    """Addresses of all clients, and exchanges with any of them.

    Flower's node ids are random in every run; a client's identity is its partition id. A message
    addresses all clients of a node that are asked; one client per node is the plain case.
    """

    def __init__(self, grid: ObservedGrid, plan: ClientPlan, timeout_s: float) -> None:
        self.grid = grid
        self.plan = plan
        self.timeout_s = timeout_s
        self.num_samples: dict[int, int] = {}
        self.label_counts: dict[int, list[int]] = {}
        self.smashed_shape: tuple[int, ...] = ()  # of one sample, where the method asks for it
        self._node_of_client: dict[int, int] = {}
        self._restarted_nodes: set[int] = set()

    @property
    def population(self) -> list[int]:
        """Ids of all clients, ascending."""
        return sorted(self._node_of_client)

    def node_of(self, client_id: int) -> int:
        """Return the address of a client's node."""
        return self._node_of_client[client_id]

    def set_up(self) -> None:
        """Send the plan to every node and learn which clients are there.

        Raises:
            RunFailedError: if a client of the plan does not answer, naming the reasons.
        """
        reasons = self._set_up_nodes(self._wait_for_nodes(self.plan.num_nodes))
        missing = sorted(set(range(self.plan.num_clients)) - set(self._node_of_client))
        if missing:
            why = f": {reasons[0]}" if reasons else " (no answer)"
            raise RunFailedError(
                f"{len(missing)} of {self.plan.num_clients} clients could not be set up, the first "
                f"is client {missing[0]}{why}"
            )
        self.grid.name_nodes({node: client for client, node in self._node_of_client.items()})

    def _set_up_nodes(self, node_ids: Iterable[int]) -> list[str]:
        """Send the plan to nodes; return the reasons of those that could not take it."""
        blob = encode(SetupRequest(plan=self.plan.to_json()))
        messages = [
            Message(pack({NODE: blob}), node_id, "query.leansplit_setup", group_id=str(SETUP_ROUND))
            for node_id in node_ids
        ]
        reasons: list[str] = []
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout_s):
            if reply.has_error():
                reasons.append(str(reply.error.reason))
                continue
            reasons += unpack_failures(reply.content).values()
            for client_id, answer in unpack(reply.content).items():
                report = decode_as(answer, SetupReply)
                self._check_report(client_id, reply.metadata.src_node_id, report)
                self._node_of_client[client_id] = reply.metadata.src_node_id
                self.num_samples[client_id] = report.num_samples
                self.label_counts[client_id] = report.label_counts
                self.smashed_shape = tuple(report.smashed_shape)
                self.grid.ledger.record(SETUP_ROUND, client_id, "downlink", price(blob))
        return reasons

    def _check_report(self, client_id: int, node_id: int, report: SetupReply) -> None:
        """Refuse a client that could only make the run wrong."""
        if self._node_of_client.get(client_id, node_id) != node_id:
            raise RunFailedError(
                f"two SuperNodes say that they host client {client_id}; give each its own "
                "partition-id"
            )
        if report.num_samples < 1:
            raise RunFailedError(f"client {client_id} has no samples; give it some or leave it out")
        if report.fixed_checksum != self.plan.fixed_checksum:
            raise RunFailedError(
                f"client {client_id} builds a model whose frozen parameters or buffers differ from "
                "the server's; load the same checkpoint on both sides"
            )
        if self.smashed_shape not in ((), tuple(report.smashed_shape)):
            raise RunFailedError(
                f"smashed data of client {client_id} have the shape {report.smashed_shape} a "
                f"sample, those of others {list(self.smashed_shape)}; give all the same input shape"
            )

    def _wait_for_nodes(self, num_nodes: int) -> list[int]:
        deadline = time.monotonic() + self.timeout_s
        while len(node_ids := sorted(self.grid.get_node_ids())) < num_nodes:
            if time.monotonic() > deadline:
                raise RunFailedError(
                    f"only {len(node_ids)} of {num_nodes} SuperNodes connected within "
                    f"{self.timeout_s:.0f} s; start more or lower the number of clients"
                )
            time.sleep(0.05)
        return node_ids

    def messages(self, requests: Mapping[int, Record], action: str, round: int) -> list[Message]:
        """Return the messages that carry ``requests`` (client id -> record) to their nodes.

        Nodes that were found to have lost their plan are set up again first.
        """
        self.revive(requests)
        of_node: dict[int, dict[int, bytes]] = {}
        for client_id in sorted(requests):
            node = of_node.setdefault(self._node_of_client[client_id], {})
            node[client_id] = encode(requests[client_id])
        return [
            Message(pack(payloads), node_id, f"train.{action}", group_id=str(round))
            for node_id, payloads in of_node.items()
        ]

    def revive(self, client_ids: Iterable[int]) -> None:
        """Set up again those of the clients' nodes that lost their plan."""
        addressed = {self._node_of_client[client_id] for client_id in client_ids}
        if lost := sorted(addressed & self._restarted_nodes):
            self._set_up_nodes(lost)
            self._restarted_nodes -= set(lost)

    def failures(
        self, missing: Iterable[int], reasons: Mapping[int, str], node_errors: Mapping[int, str]
    ) -> dict[int, str]:
        """Say, and log, why clients did not answer, in ascending order of their ids.

        Args:
            missing: clients without an answer.
            reasons: client id -> reason, of clients that reported one themselves.
            node_errors: node id -> reason, of nodes that failed as a whole.
        """
        failures: dict[int, str] = {}
        for client_id in sorted(missing):
            node_id = self._node_of_client[client_id]
            reason = reasons.get(client_id) or node_errors.get(node_id, "no answer in time")
            if NO_PLAN in reason:
                self._restarted_nodes.add(node_id)
            log.warning("client %d dropped from this step: %s", client_id, reason)
            failures[client_id] = reason
        return failures

    def collect(
        self,
        replies: Iterable[Message],
        expected_ids: Iterable[int],
        record_types: type[R] | tuple[type[R], ...],
    ) -> Replies[R]:
        """Decode replies and put them in order; whoever is missing is a failure with a reason."""
        expected = sorted(expected_ids)
        records: dict[int, R] = {}
        reasons: dict[int, str] = {}
        node_errors: dict[int, str] = {}
        for reply in replies:
            if reply.has_error():
                node_errors[self.grid.sender_of(reply)] = str(reply.error.reason)
                continue
            reasons |= unpack_failures(reply.content)
            for client_id, blob in unpack(reply.content).items():
                try:
                    records[client_id] = decode_as(blob, record_types)
                except DecodeError as error:
                    reasons[client_id] = str(error)
        answered = {i: records[i] for i in expected if i in records and i not in reasons}
        missing = [i for i in expected if i not in answered]
        return Replies(answered, self.failures(missing, reasons, node_errors))

    def exchange(
        self,
        requests: Mapping[int, Record],
        action: str,
        round: int,
        record_types: type[R] | tuple[type[R], ...],
    ) -> Replies[R]:
        """Ask clients and wait for their answers."""
        if not requests:
            return Replies({})
        messages = self.messages(requests, action, round)
        replies = self.grid.send_and_receive(messages, timeout=self.timeout_s)
        return self.collect(replies, requests, record_types)
