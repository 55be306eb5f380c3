"""A Flower grid that waits briskly, counts exchanges and prices what crosses.

It stands between a strategy and the real grid, so strategies contain no accounting.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from leansplit.strategies.flower_records import NODE, take_choices, take_costs, unpack, with_watch
from leansplit.wire import BehindReply, DecodeError, Direction, Kind, Ledger, decode, price
from leansplit.zeroth_order import JointPassChoice

if TYPE_CHECKING:
    from leansplit.strategies.client_watch import ClientWatch

T = TypeVar("T")

_FIRST_POLL_S = 0.002
_LONGEST_POLL_S = 0.25
_POLL_GROWTH = 1.1  # an exchange ends at most a tenth later than its last answer comes
_FIRST_RESPITE_S, _LONGEST_RESPITE_S = 1.0, 30.0
_MOST_CHOICES = 10_000
_HEADER_START = 128  # a record's type stands at the very beginning of its encoding


@dataclass(frozen=True)
class _Asked:
    """What the server knows of a message that it sent; an answer's own word for it is not read.

    Attributes:
        node_id: whom it went to.
        round: that it belongs to; 0 = set-up.
        clients: that it asks. None are known of a message to a whole node.
        watched: which of them is to count its costs; None: nobody is.
    """

    node_id: int
    round: int
    clients: frozenset[int]
    watched: int | None


class ObservedGrid(Grid):
    """Wraps a grid; everything else is passed on.

    Args:
        grid: what messages go through.
        ledger: see below.
        repeats: (round, client id) -> whether to inject that its replies come twice.
        has_shared_replicas: whether clients are simulated by workers that may lag behind them; no
            other client is believed that it is only its worker that does.
        max_reply_bytes: of an answer that is looked into at all; longer ones are envelope.
        longest_header: of an answer; those with a longer one are envelope, too.

    Attributes:
        ledger: books every record that crosses.
        num_exchanges: times that the server sent something and waited for the answers.
        contacted: clients that were sent anything since this was last emptied.
        events: counts of what was refused, such as ``unasked_answers``: answers that nobody had
            asked for, such as the second to one message, or for a client that was not asked.
        watch: chooses the client that counts its own costs; None: nobody does.
        joint_passes: which batches of several clients were run at once, as nodes told.
    """

    def __init__(
        self,
        grid: Grid,
        ledger: Ledger,
        repeats: Callable[[int, int], bool] | None = None,
        *,
        has_shared_replicas: bool = False,
        max_reply_bytes: int = 2**30,
        longest_header: int = 2**20,
    ) -> None:
        self._grid = grid
        self._max_reply_bytes = max_reply_bytes
        self._longest_header = longest_header
        self._has_shared_replicas = has_shared_replicas
        self._repeats = repeats
        self._repeated: list[Message] = []
        self.events: Counter[str] = Counter()
        self.ledger = ledger
        self.num_exchanges = 0
        self.contacted: set[int] = set()
        self.watch: ClientWatch | None = None
        self.joint_passes: list[JointPassChoice] = []
        self._client_of_node: dict[int, int] = {}
        self._asked: dict[str, _Asked] = {}  # message id -> what it asks, of this exchange
        self._answered: set[str] = set()
        self._is_priced = True
        self._is_booked = True
        self._respite_s = _FIRST_RESPITE_S

    def name_nodes(self, client_of_node: dict[int, int]) -> None:
        """Say which client a node stands for in messages that do not name one (FedAvg's)."""
        self._client_of_node = dict(client_of_node)

    def take_events(self) -> Counter[str]:
        """Return the counts of what was refused since the last time."""
        taken, self.events = self.events, Counter()
        return taken

    @contextmanager
    def unpriced_requests(self) -> Iterator[None]:
        """Neither price requests nor count exchanges inside the block.

        For refills of a simulation's worker process: a real client has what they carry. The
        answers are the clients' own and are priced.
        """
        self._is_priced = False
        try:
            yield
        finally:
            self._is_priced = True

    @contextmanager
    def unbooked(self) -> Iterator[None]:
        """Neither book anything nor count exchanges inside the block, in either direction.

        For a simulation that stores or restores what its clients remember: theirs would be still
        there.
        """
        before, self._is_booked = self._is_booked, False
        try:
            with self.unpriced_requests():
                yield
        finally:
            self._is_booked = before

    def book(
        self, round: int, client_id: int, direction: Direction, priced: Mapping[Kind, int]
    ) -> None:
        """Book what a message to a whole node, or its answer, carried for one of its clients."""
        if self._is_booked:
            self.ledger.record(round, client_id, direction, priced)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, then poll for the replies: often at first, ever less often later.

        Replies that do not come within ``timeout`` seconds are missing from what is returned. If
        all of them are errors of nodes, some time passes first, and more if it happens again:
        processes that died are being replaced, and until then every message fails at once.
        """
        sent = list(messages)
        if not sent:
            return []
        self._asked, self._answered = {}, set()
        message_ids = set(self.push_messages(sent))
        if self._is_priced:
            self.num_exchanges += 1
        replies: list[Message] = []
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_POLL_S
        while message_ids and (deadline is None or time.monotonic() < deadline):
            looked_at = time.monotonic()
            arrived = list(self.pull_messages(message_ids))
            message_ids -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
            if message_ids:
                # Answers come in bursts; and looking in vain takes half of the time at most.
                took_s = time.monotonic() - looked_at
                pause = _FIRST_POLL_S if arrived else min(max(pause, took_s), _LONGEST_POLL_S)
                time.sleep(pause)
                pause *= _POLL_GROWTH
        self._await_replacements(replies)
        return replies

    def _await_replacements(self, replies: list[Message]) -> None:
        if not replies or not all(reply.has_error() for reply in replies):
            self._respite_s = _FIRST_RESPITE_S
        elif getattr(self._grid, "replaces_processes", True):
            time.sleep(self._respite_s)
            self._respite_s = min(2 * self._respite_s, _LONGEST_RESPITE_S)

    def sender_of(self, reply: Message) -> int:
        """Return the node that a reply stands for.

        An error made on a node's behalf does not come from it, so the message that it answers
        decides.
        """
        asked = self._asked.get(reply.metadata.reply_to_message_id)
        return reply.metadata.src_node_id if asked is None else asked.node_id

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Price the messages and pass them on."""
        sent, asked = list(messages), []
        for message in sent:
            round, clients = _round_of(message), self._clients_of(message)
            self.contacted |= clients
            watched = None
            if self.watch is not None and self._is_booked:
                watched = self.watch.on_asked(round, clients)
            node_id = message.metadata.dst_node_id
            asked.append(_Asked(node_id, round, frozenset(clients), watched))
        self._book_requests(sent, asked)
        for message, about in zip(sent, asked, strict=True):
            if about.watched is not None:  # FedAvg's content is shared by all its messages
                message.content = with_watch(message.content, about.watched)
        message_ids = list(self._grid.push_messages(sent))
        self._asked |= {m.metadata.message_id: a for m, a in zip(sent, asked, strict=True)}
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch the first answers to messages, and price them; all others are dropped unread.

        To which message an answer belongs says everything about it: its round, and for whom its
        node may speak. What it claims beyond that is counted and changes nothing.
        """
        pulled = list(self._grid.pull_messages(message_ids))
        replies: list[Message] = []
        for reply in pulled + self._inject_repeated(pulled):
            answered = reply.metadata.reply_to_message_id
            asked = self._asked.get(answered)
            if asked is None or answered in self._answered:
                self.events["unasked_answers"] += 1
                continue
            self._answered.add(answered)
            replies.append(reply)
            if reply.has_error():
                continue
            report = take_costs(reply.content)
            if report is not None and self.watch is not None and asked.watched is not None:
                self.watch.on_report(asked.round, report)
            room = max(0, _MOST_CHOICES - len(self.joint_passes))
            self.joint_passes += take_choices(reply.content)[:room]
            self._book_reply(reply.content, asked)
        return replies

    def _inject_repeated(self, replies: list[Message]) -> list[Message]:
        """Return copies of the replies of clients whose messages come twice, and older copies."""
        if self._repeats is None:
            return []
        again = []
        for reply in replies:
            asked = self._asked.get(reply.metadata.reply_to_message_id)
            if asked is None or reply.has_error():
                continue
            if any(self._repeats(asked.round, m) for m in asked.clients):
                again.append(reply)
        stray, self._repeated = self._repeated, again
        return again + stray

    def _clients_of(self, message: Message) -> set[int]:
        """Return the clients that a message to a node is about."""
        clients = set(unpack(message.content))
        node_id = message.metadata.dst_node_id
        if not clients and node_id in self._client_of_node:
            return {self._client_of_node[node_id]}
        return clients - {NODE}

    def _book_requests(self, messages: list[Message], asked: list[_Asked]) -> None:
        if not self._is_booked or not self._is_priced:
            return
        # By identity: many clients are sent one encoding, many nodes FedAvg's one content.
        priced: dict[int, tuple[object, dict[Kind, int]]] = {}

        def book(round: int, client_id: int, sent: T, rule: Callable[[T], dict[Kind, int]]) -> None:
            if id(sent) not in priced:
                priced[id(sent)] = sent, rule(sent)
            self.ledger.record(round, client_id, "downlink", priced[id(sent)][1])

        for message, about in zip(messages, asked, strict=True):
            payloads = unpack(message.content)
            for client_id, blob in payloads.items():
                if client_id != NODE:
                    book(about.round, client_id, blob, price)
            if not payloads and about.clients:
                [client_id] = about.clients
                book(about.round, client_id, message.content, _price_flower_records)

    def _book_reply(self, content: RecordDict, asked: _Asked) -> None:
        """Book an answer to those clients that were asked; the reader counts the others."""
        if not self._is_booked:
            return
        payloads = unpack(content)
        for client_id in asked.clients & payloads.keys():
            blob = payloads[client_id]
            if not (self._has_shared_replicas and self._is_worker_gap(blob)):
                self.ledger.record(asked.round, client_id, "uplink", self.priced(blob))
        if not payloads and len(asked.clients) == 1:
            [client_id] = asked.clients
            if self._client_of_node.get(asked.node_id) == client_id:
                self.ledger.record(asked.round, client_id, "uplink", self._priced_content(content))

    def priced(self, answer: bytes) -> dict[Kind, int]:
        """Return the price of an answer; of one too long to be read, no byte is looked at."""
        if len(answer) > self._max_reply_bytes:
            return {"envelope": len(answer)}
        return price(answer, self._longest_header)

    def _priced_content(self, content: RecordDict) -> dict[Kind, int]:
        num_bytes = sum(
            len(array.data)
            for record in content.array_records.values()
            for array in record.values()
        )
        if num_bytes > self._max_reply_bytes:  # encoding it again would double it
            return {"envelope": num_bytes}
        return _price_flower_records(content)

    def _is_worker_gap(self, answer: bytes) -> bool:
        """Say whether an answer is a simulation worker's word that it lags behind its client."""
        start = answer[:_HEADER_START]
        if len(answer) > self._max_reply_bytes or BehindReply.__name__.encode() not in start:
            return False
        try:
            record = decode(answer, most_tensors=0)
        except DecodeError:
            return False
        return isinstance(record, BehindReply) and record.is_worker_gap

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._grid.get_node_ids()

    def set_run(self, run: Run) -> None:
        """Pass the run on to the wrapped grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run, as the wrapped grid has it."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message as the wrapped grid does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)


def _round_of(message: Message) -> int:
    """Return the round that a request belongs to, which strategies put into its group id."""
    group = message.metadata.group_id
    return int(group) if group.isascii() and group.isdigit() else 0


def _price_flower_records(content: RecordDict) -> dict[Kind, int]:
    """Price a message in Flower's own format: array contents are weights, the rest envelope.

    Bytes whose arrays are described wrongly crossed all the same: they are all envelope.
    """
    encoded = recorddict_to_proto(content).ByteSize()
    try:
        weights = sum(
            prod(array.shape) * np.dtype(array.dtype).itemsize
            for record in content.array_records.values()
            for array in record.values()
        )
    except Exception:  # numpy raises what it likes of a type that it does not know
        weights = 0
    if not 0 <= weights <= encoded:
        weights = 0
    return {"weights": weights, "envelope": encoded - weights}
