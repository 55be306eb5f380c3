"""The ClientApp: messages to handlers, one client at a time, failures kept apart."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, SupportsIndex

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from leansplit.clients import (
    cse_fsl,
    decomfl,
    deposits,
    fedavg,
    fedzo,
    frozen,
    fsl_sage,
    heron_sfl,
    ho_fl,
    ho_sfl,
    hosl,
    replicas,
    splitfed,
    zo_split,
)
from leansplit.clients.answering import answer_all, answer_of, answer_one
from leansplit.clients.attacks import corrupted
from leansplit.clients.faults import (
    InjectedFault,
    die_if_struck,
    disturbed,
    strikes,
    takes_its_step,
)
from leansplit.clients.handlers import (
    Handler,
    HandlerTable,
    register_handlers,
    registered_handlers,
)
from leansplit.clients.memory import ClientMemory, load_plan, save_plan
from leansplit.clients.privacy import released
from leansplit.clients.session import Session
from leansplit.clients.task_workload import provide_task_workload
from leansplit.clients.workload import Provider, Worker, Workload, worker_for
from leansplit.devices import CPU, usable_device
from leansplit.errors import UserError
from leansplit.federated import ClientData, Fault
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.parameters import checksum, fixed_state
from leansplit.plugins import load_plugins
from leansplit.strategies.flower_records import (
    NO_PLAN,
    NODE,
    pack,
    take_watch,
    unpack,
    with_choices,
    with_costs,
)
from leansplit.wire import (
    ClientPlan,
    DecodeError,
    Record,
    SetupReply,
    SetupRequest,
    decode_as,
    encode,
    moved,
)

_FUNCTIONS: Final = "_registered_funcs"  # Flower's name for the attribute
OWN_DATA = "data"
"""Key of the configuration of nodes that bring data of their own: an absolute folder or file."""

log = logging.getLogger("leansplit")

_HANDLERS: Final[dict[str, tuple[type[Record], Handler]]] = {}
"""leansplit's own, which every process has."""
for _module in (
    cse_fsl,
    decomfl,
    deposits,
    fedzo,
    frozen,
    fsl_sage,
    heron_sfl,
    ho_fl,
    ho_sfl,
    hosl,
    replicas,
    splitfed,
    zo_split,
):
    register_handlers(_module.HANDLERS)
    _HANDLERS.update(_module.HANDLERS)


class SplitClientApp(ClientApp):
    """A ClientApp whose model and data come from ``provider``.

    The provider runs once in each worker process. Flower ships the app with every message of a
    simulation, so a provider should build or load what it needs and not carry it along. The app
    itself ships as its provider, the actions that are not leansplit's own, and what was added to
    it, and is built again where it arrives: written out, its functions took longer than a small
    step. A class of your own is written out.

    Args:
        provider: plan -> model and data.
        handlers: what answers each action.
    """

    def __init__(self, provider: Provider, handlers: HandlerTable) -> None:
        super().__init__()
        self._provider = provider
        self._handlers = handlers
        _answer_with(self, provider, handlers)
        self._built = dict(vars(self), **{_FUNCTIONS: dict(self._registered_funcs)})

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Return how to build the app again, and what was added to it since it was made."""
        if type(self) is not SplitClientApp:
            return super().__reduce_ex__(protocol)
        own = {a: h for a, h in self._handlers.items() if _HANDLERS.get(a) != h}
        rest = {k: v for k, v in vars(self).items() if k not in ("_built", _FUNCTIONS)}
        added = _changed(rest, self._built)
        functions = _changed(self._registered_funcs, self._built[_FUNCTIONS])
        if functions:
            added[_FUNCTIONS] = functions
        return _shipped_app, (self._provider, own), added or None

    def __setstate__(self, added: dict[str, Any]) -> None:
        """Put back what was added before the app was shipped, and keep what was built."""
        built = vars(self).get(_FUNCTIONS, {})
        vars(self).update(added, **{_FUNCTIONS: {**built, **added.get(_FUNCTIONS, {})}})


def _changed(now: Mapping[str, Any], built: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in now.items() if k not in built or built[k] is not v}


def _shipped_app(provider: Provider, own: HandlerTable) -> SplitClientApp:
    return SplitClientApp(provider, {**_HANDLERS, **own})


def client_app(provider: Provider) -> ClientApp:
    """Return a ClientApp with all actions known so far; see :class:`SplitClientApp`."""
    return SplitClientApp(provider, registered_handlers())


def _answer_with(app: ClientApp, provider: Provider, handlers: HandlerTable) -> None:
    """Register the functions that answer set-up, every action of ``handlers``, and FedAvg."""

    @app.query("leansplit_setup")
    def set_up(message: Message, context: Context) -> Message:
        request = decode_as(unpack(message.content)[NODE], SetupRequest)
        plan = _own_plan(ClientPlan.from_json(request.plan), context)
        save_plan(context, plan.to_json())
        hosted = plan.hosted_clients(_partition_id(context))
        try:
            usable_device(plan.client_device)
        except UserError as error:
            log.error("this node cannot take part: %s", error)
            return Message(pack({}, dict.fromkeys(hosted, str(error))), reply_to=message)
        try:
            if OWN_DATA in context.node_config and len(hosted) > 1:
                raise UserError("a node with data of its own hosts one client: clients_per_node=1")
            worker = worker_for(plan, provider)
        except UserError as error:
            log.error("this node cannot take part: %s", error)
            is_private = OWN_DATA in context.node_config
            told = "its data cannot be used; its own log says why" if is_private else str(error)
            return Message(pack({}, dict.fromkeys(hosted, told)), reply_to=message)
        model = worker.workload.model
        trained = model.full_model if plan.is_whole_model else model.client_model
        fixed = checksum(fixed_state(trained))
        replies = {
            client_id: encode(_report(plan, worker, client_id, fixed), has_mask=plan.has_mask)
            for client_id in hosted
        }
        return Message(pack(replies), reply_to=message)

    def register(action: str, request_type: type[Record], handler: Handler) -> None:
        @app.train(action)
        def answer(message: Message, context: Context) -> Message:
            payloads, watching = unpack(message.content), take_watch(message.content)
            plan = load_plan(context)
            if plan is None:
                return Message(pack({}, dict.fromkeys(payloads, NO_PLAN)), reply_to=message)
            worker = worker_for(plan, provider)
            replies: dict[int, bytes] = {}
            failures: dict[int, str] = {}
            faults: dict[int, Fault | None] = {}
            requests: dict[int, Record] = {}
            for client_id, blob in payloads.items():
                try:
                    request = moved(decode_as(blob, request_type), worker.device)
                    requests[client_id] = request
                    faults[client_id] = strikes(plan, client_id, request)
                except (DecodeError, torch.OutOfMemoryError) as error:
                    failures[client_id] = f"{type(error).__name__}: {error}"
            die_if_struck(faults.values(), context)
            asked = {
                client_id: (
                    Session(client_id, plan, worker, ClientMemory(context, client_id)),
                    request,
                )
                for client_id, request in requests.items()
            }
            working = {m: asked[m] for m, fault in faults.items() if takes_its_step(fault)}
            with worker.computing():
                settled, costs = answer_all(handler, working, worker.passes, watching)
            for client_id, (session, request) in asked.items():
                # One client's failure must not take down the others that share its node.
                try:
                    reply = disturbed(faults[client_id], partial(answer_of, settled, client_id))
                    reply = corrupted(session, request, released(session, request, reply))
                    replies[client_id] = encode(reply, has_mask=plan.has_mask)
                except InjectedFault as fault:
                    failures[client_id] = str(fault)
                except Exception as error:
                    failures[client_id] = f"{type(error).__name__}: {error}"
            content = with_costs(pack(replies, failures), costs)
            told, worker.passes.unreported = worker.passes.unreported, []
            return Message(with_choices(content, told), reply_to=message)

    for action, (request_type, handler) in handlers.items():
        register(action, request_type, handler)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        plan = load_plan(context)
        if plan is None:
            raise RuntimeError(NO_PLAN)
        worker = worker_for(plan, provider)
        [client_id] = plan.hosted_clients(_partition_id(context))
        session = Session(client_id, plan, worker, ClientMemory(context, client_id))
        fault = plan.faults.strikes(
            plan.config.root_seed, fedavg.round_of(message.content), client_id, 0
        )
        die_if_struck([fault], context)
        is_watched = take_watch(message.content) is not None
        step = partial(answer_one, session, fedavg.answer, message.content, is_watched)
        with worker.computing():
            content, costs = disturbed(fault, step)
        return Message(with_costs(content, costs), reply_to=message)


def split_client_app(
    build_model: Callable[[], SplitModel],
    load_client_data: Callable[[int], ClientData],
    loss: Loss | None = None,
) -> ClientApp:
    """Return the ClientApp for your own Flower app.

    Args:
        build_model: returns the split model; called once in each worker process. Parameters that
            are trained are overwritten by what the server sends, all others must come out the
            same in every process.
        load_client_data: client id (Flower's partition id) -> an object with ``inputs`` and
            ``labels`` tensors, such as :class:`leansplit.tasks.Examples`.
        loss: (outputs, labels) -> mean loss; needed by clients that evaluate it themselves (FedAvg,
            HO-FL, DeComFL, FedZO and those with an auxiliary head).
    """

    def provider(_: ClientPlan) -> Workload:
        return Workload(model=build_model(), client_data=load_client_data, loss=loss)

    return client_app(provider)


def _partition_id(context: Context) -> int:
    if "partition-id" not in context.node_config:
        raise ValueError("this SuperNode has no partition-id; start it with --node-config")
    return int(str(context.node_config["partition-id"]))


def _own_plan(plan: ClientPlan, context: Context) -> ClientPlan:
    """Return the plan as this node keeps it: with its own data, if it was started with any.

    Which folder that is the node alone says, and never the server.
    """
    own = str(context.node_config.get(OWN_DATA, ""))
    if not own and not plan.workload.get("own_data"):
        return plan
    return dataclasses.replace(plan, workload={**plan.workload, "own_data": own})


def _report(plan: ClientPlan, worker: Worker, client_id: int, fixed_checksum: str) -> SetupReply:
    data = worker.workload.client_data(client_id)  # not kept: it may never take part
    labels = data.labels
    samples = {}
    if not plan.is_whole_model and len(labels):
        smashed = worker.smashed_data_of_none(data.inputs[: plan.config.batch_size])
        samples = {"smashed_data": smashed.to(CPU), "labels": labels[:0]}
    num_classes = worker.workload.num_classes
    counts = labels.bincount(minlength=num_classes).tolist() if num_classes else []
    return SetupReply(
        num_samples=len(labels), label_counts=counts, fixed_checksum=fixed_checksum, **samples
    )


def task_client_app() -> ClientApp:
    """Return the ClientApp of leansplit's own runs, with the actions of all plugins loaded."""
    load_plugins()
    return client_app(provide_task_workload)


app = task_client_app()
