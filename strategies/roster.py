"""Who the clients of a run are: set-up, their addresses, what their samples look like."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from leansplit.errors import RunFailedError
from leansplit.strategies.failures import Failure
from leansplit.strategies.flower_records import NODE, pack, printable, unpack, unpack_failures
from leansplit.strategies.observed_grid import ObservedGrid
from leansplit.strategies.samples import ExpectedSamples, Sample
from leansplit.wire import (
    ClientPlan,
    DecodeError,
    Kind,
    SetupReply,
    SetupRequest,
    decode_as,
    encode,
    price,
)

log = logging.getLogger("leansplit")

SETUP_ROUND = 0
_MOST_TENSORS = 8  # of a report, those too many included that a refusal can name
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


class Roster:
    """All clients of a run, and the nodes that host them.

    Flower's node ids are random in every run; a client's identity is its partition id.

    Attributes:
        num_samples: client id -> samples it holds.
        label_counts: client id -> samples of each label; empty if labels are not class indices.
        samples: client id -> what one of its samples looks like.
        max_reply_bytes: of an answer that is read at all.
        expected: what reports are held against.
    """

    def __init__(
        self,
        grid: ObservedGrid,
        plan: ClientPlan,
        timeout_s: float,
        max_reply_bytes: int,
        expected: ExpectedSamples,
    ) -> None:
        self.grid = grid
        self.plan = plan
        self.timeout_s = timeout_s
        self.max_reply_bytes = max_reply_bytes
        self.expected = expected
        self.num_samples: dict[int, int] = {}
        self.label_counts: dict[int, list[int]] = {}
        self.samples: dict[int, Sample] = {}
        self._alike: dict[Sample, Sample] = {}  # one of each kind, however many clients have it
        self._node_of_client: dict[int, int] = {}
        self._population: list[int] = []
        self._lost_nodes: dict[int, Failure] = {}  # node id -> why it cannot be asked

    @property
    def population(self) -> list[int]:
        """Ids of all clients, ascending; to be read only."""
        if len(self._population) != len(self._node_of_client):
            self._population = sorted(self._node_of_client)
        return self._population

    def node_of(self, client_id: int) -> int:
        """Return the address of a client's node."""
        return self._node_of_client[client_id]

    def batch_size(self, client_id: int) -> int:
        """Return B_m, the samples of a client's batch."""
        return min(self.plan.config.batch_size, self.num_samples[client_id])

    def set_up(self) -> None:
        """Send the plan to every node and learn which clients are there.

        Raises:
            RunFailedError: if a client of the plan does not answer, or could only make the run
                wrong, naming the reason.
        """
        reasons = self._set_up_nodes(self._wait_for_nodes(self.plan.num_nodes))
        if self._lost_nodes:
            raise RunFailedError(next(iter(self._lost_nodes.values())).reason)
        missing = sorted(set(range(self.plan.num_clients)) - set(self._node_of_client))
        if missing:
            why = f": {reasons[0]}" if reasons else " (no answer)"
            raise RunFailedError(
                f"{len(missing)} of {self.plan.num_clients} clients could not be set up, the first "
                f"is client {missing[0]}{why}"
            )
        self.grid.name_nodes({node: client for client, node in self._node_of_client.items()})

    def reachable(self, client_ids: Iterable[int]) -> list[int]:
        """Return those of the clients whose nodes hold the plan, in the order given.

        Nodes that were found to have lost it are set up again first.
        """
        asked = list(client_ids)
        addressed = {self._node_of_client[client_id] for client_id in asked}
        if lost := sorted(addressed & self._lost_nodes.keys()):
            self._set_up_nodes(lost)
        return [m for m in asked if self._node_of_client[m] not in self._lost_nodes]

    def lose_node(self, node_id: int, why: Failure) -> None:
        """Note that a node has to be set up again before it is asked for anything."""
        self._lost_nodes[node_id] = why

    def why_lost(self, node_id: int) -> Failure | None:
        """Return why a node cannot be asked; None if it can."""
        return self._lost_nodes.get(node_id)

    def require_size(self, num_bytes: int) -> None:
        """Refuse an answer that is too long to be read.

        Raises:
            DecodeError: saying so.
        """
        if num_bytes > self.max_reply_bytes:
            limit = f"the limit is {self.max_reply_bytes} (max_reply_mb)"
            raise DecodeError(f"it has {num_bytes} bytes; {limit}", "size")

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

    def _set_up_nodes(self, node_ids: Iterable[int]) -> list[str]:
        """Send the plan to nodes; return the reasons of those that could not take it.

        Nodes with a report that cannot be accepted are lost, the others are not.
        """
        blob = encode(SetupRequest(plan=self.plan.to_json()))
        priced = price(encode(SetupRequest(plan=self.plan.for_one_client().to_json())))
        messages = [
            Message(pack({NODE: blob}), node_id, "query.leansplit_setup", group_id=str(SETUP_ROUND))
            for node_id in node_ids
        ]
        reasons: list[str] = []
        reports: list[tuple[int, dict[int, bytes]]] = []
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout_s):
            if reply.has_error():
                reasons.append(printable(str(reply.error.reason)))
                continue
            reasons += unpack_failures(reply.content).values()
            node_id = self.grid.sender_of(reply)
            self._lost_nodes.pop(node_id, None)
            reports.append((node_id, unpack(reply.content)))
        for node_id, answers in sorted(reports, key=lambda report: sorted(report[1])):
            try:
                self._require_own(node_id, answers)
            except RunFailedError as error:
                self.lose_node(node_id, Failure(str(error), "report"))
                continue
            self._take_reports(node_id, answers, priced)
        return reasons

    def _take_reports(
        self, node_id: int, answers: Mapping[int, bytes], priced: Mapping[Kind, int]
    ) -> None:
        """Note who the clients of a node are, and what their set-up cost."""
        for client_id, answer in sorted(answers.items()):
            try:
                self.grid.book(SETUP_ROUND, client_id, "downlink", priced)
                self.grid.book(SETUP_ROUND, client_id, "uplink", self.grid.priced(answer))
                self.grid.contacted.add(client_id)  # whoever is set up has forgotten everything
                self.require_size(len(answer))
                self._take_report(client_id, node_id, decode_as(answer, SetupReply, _MOST_TENSORS))
            except DecodeError as error:
                reason = f"the report of client {client_id} is wrong: {error}"
                self.lose_node(node_id, Failure(reason, "report"))
            except RunFailedError as error:
                self.lose_node(node_id, Failure(str(error), "report"))

    def _require_own(self, node_id: int, client_ids: Collection[int]) -> None:
        """Raise ``RunFailedError`` unless a node may speak for clients: those of one partition."""
        per_node, ids = self.plan.clients_per_node, sorted(client_ids)
        if unknown := [m for m in ids if not 0 <= m < self.plan.num_clients]:
            raise RunFailedError(
                f"a SuperNode reports client {unknown[0]}, which the plan does not have; it has "
                f"{self.plan.num_clients} clients"
            )
        if ids and ids[0] // per_node != ids[-1] // per_node:
            raise RunFailedError(
                f"one SuperNode reports clients {ids[0]} and {ids[-1]}, which belong to two; it "
                f"may host {per_node} (clients_per_node), those of its partition-id"
            )
        if elsewhere := [m for m in ids if self._node_of_client.get(m, node_id) != node_id]:
            raise RunFailedError(
                f"two SuperNodes say that they host client {elsewhere[0]}; give each its own "
                "partition-id"
            )

    def _take_report(self, client_id: int, node_id: int, report: SetupReply) -> None:
        """Note who a client is; a second report must say what the first did.

        Raises:
            DecodeError: if it does not say what its samples look like, or what it said before.
            RunFailedError: if it could only make the run wrong.
        """
        if report.num_samples < 1:
            raise RunFailedError(f"client {client_id} has no samples; give it some or leave it out")
        if report.fixed_checksum != self.plan.fixed_checksum:
            raise RunFailedError(
                f"client {client_id} builds a model whose frozen parameters or buffers differ from "
                "the server's; load the same checkpoint on both sides"
            )
        others = next(iter(self.label_counts.values()), None)
        self.expected.require_counts(report, None if others is None else len(others))
        sample = self.expected.sample(report, has_mask=self.plan.has_mask)
        self._require_alike(client_id, sample)
        if client_id in self._node_of_client:
            first = self.num_samples[client_id]
            known = first, self.label_counts[client_id], self.samples[client_id]
            if (report.num_samples, report.label_counts, sample) != known:
                raise DecodeError(
                    f"it has {report.num_samples} samples, or others than the {first} that it "
                    "reported at first; a restarted node must bring the data it had",
                    "value",
                )
        self._node_of_client[client_id] = node_id
        self.num_samples[client_id] = report.num_samples
        self.label_counts[client_id] = report.label_counts
        self.samples[client_id] = self._alike.setdefault(sample, sample)

    def _require_alike(self, client_id: int, sample: Sample) -> None:
        """Refuse samples that one server model cannot take together with the others'."""
        other = next(iter(self.samples.values()), sample)
        own, known = sample.smashed_data, other.smashed_data
        if self.plan.config.needs_one_smashed_shape and own.shape != known.shape:
            raise RunFailedError(
                f"smashed data of client {client_id} have the shape {list(own.shape)} a sample, "
                f"those of others {list(known.shape)}; give all the same input shape"
            )
        for what, dtype, others in (
            ("smashed data", own.dtype, known.dtype),
            ("labels", sample.labels.dtype, other.labels.dtype),
        ):
            if dtype != others:
                raise RunFailedError(
                    f"{what} of client {client_id} are {dtype}, those of others {others}; give all "
                    "the same type"
                )
