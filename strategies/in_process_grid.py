"""A Flower grid without Ray: nodes are function calls in this process, one after the other.

For tests, for debugging, and for machines where Ray is unwelcome: the same apps, the same
messages, the same results. Every node has a context of its own, as in a simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from leansplit.strategies.flower_records import IN_PROCESS

Fault = Callable[[Message, int], str | None]
"""(message, partition id) -> why that client fails to answer, or None."""


class InProcessGrid(Grid):
    """Calls a ClientApp directly.

    Args:
        client_app: the app of every node.
        num_nodes: SuperNodes; partition ids are 0 to ``num_nodes - 1``.
        fault: decides for each message whether its client fails; default: none does.
        node_configs: partition id -> what else stands in that node's configuration.

    Attributes:
        replaces_processes: false: there are none, so nobody waits for them.
    """

    replaces_processes = False

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int,
        *,
        fault: Fault | None = None,
        node_configs: Mapping[int, Mapping[str, int | str]] = MappingProxyType({}),
    ) -> None:
        self._app = client_app
        self._fault = fault
        self._run = Run.create_empty(run_id=1)
        # Flower's Message reads who is sending from here; its runtimes set it, so must this one.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
        # Addresses unlike partition ids, so that confusing the two shows.
        self._contexts = {
            1_000_003 * (num_nodes - partition_id): Context(
                run_id=1,
                node_id=1_000_003 * (num_nodes - partition_id),
                node_config={
                    "partition-id": partition_id,
                    "num-partitions": num_nodes,
                    IN_PROCESS: True,
                    **node_configs.get(partition_id, {}),
                },
                state=RecordDict(),
                run_config={},
            )
            for partition_id in range(num_nodes)
        }
        self._replies: dict[str, Message] = {}

    def context_of(self, partition_id: int) -> Context:
        """Return the context of a node."""
        for context in self._contexts.values():
            if context.node_config["partition-id"] == partition_id:
                return context
        raise KeyError(partition_id)

    def set_run(self, run: Run) -> None:
        """Take another run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the addresses of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the messages answered at once."""
        message_ids = []
        for message in messages:
            message_id = str(uuid4())
            message.metadata.__dict__["_message_id"] = message_id
            self._replies[message_id] = self._answer(message)
            message_ids.append(message_id)
        return message_ids

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        partition_id = int(str(context.node_config["partition-id"]))
        try:
            reason = self._fault(message, partition_id) if self._fault else None
            if reason is None:
                return self._app(message, context)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        return Message(
            Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies in an order of their own: it must not matter."""
        known = [i for i in message_ids if i in self._replies]
        return [self._replies.pop(message_id) for message_id in sorted(known)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies."""
        return self.pull_messages(self.push_messages(messages))
