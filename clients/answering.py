"""What the clients of one node answer: each for itself, or computed together."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TypeVar

from leansplit.clients.deferred import Deferred
from leansplit.clients.handlers import Handler
from leansplit.clients.session import Session
from leansplit.clients.watched import watched
from leansplit.devices import CPU
from leansplit.strategies.flower_records import CostReport
from leansplit.wire import Record, moved
from leansplit.zeroth_order import JointPasses

log = logging.getLogger("leansplit")
A = TypeVar("A")
Q = TypeVar("Q")

Settled = Record | Exception
"""A client's answer, or what went wrong with it."""


def answer_one(
    session: Session, work: Callable[[Session, Q], A], request: Q, is_watched: bool
) -> tuple[A, CostReport | None]:
    """Return a client's answer, and what it cost if the client was asked to count that."""
    if is_watched:
        return watched(session, work, request)
    return work(session, request), None


def answer_all(
    handler: Handler,
    asked: Mapping[int, tuple[Session, Record]],
    passes: JointPasses,
    watching: int | None,
) -> tuple[dict[int, Settled], CostReport | None]:
    """Return the answers of several clients; what goes wrong with one does not touch the others.

    Args:
        handler: of the message's action.
        asked: client id -> its view of the message and its request.
        passes: runs the batches of several clients.
        watching: who counts what its answer costs it, if anybody. It goes first and alone: the
            others would bring the replica that they share up to date.

    Returns:
        (client id -> its answer or what went wrong, what the watching client counted).
    """
    settled: dict[int, Settled] = {}
    deferred: dict[int, Deferred] = {}
    costs: CostReport | None = None
    if watching is not None and watching in asked:
        session, request = asked[watching]
        try:
            answered, costs = watched(session, partial(_alone, handler), request)
            settled[watching] = _sent(answered)
        except Exception as error:
            settled[watching] = error
    for client_id, (session, request) in asked.items():
        if client_id == watching:
            continue
        answer = _attempt(partial(handler, session, request))
        if isinstance(answer, Record | Exception):
            settled[client_id] = _sent(answer)
        else:
            deferred[client_id] = answer
    return settled | _settle(deferred, passes), costs


def answer_of(settled: Mapping[int, Settled], client_id: int) -> Record:
    """Return a client's answer.

    Raises:
        Exception: what went wrong with it, if something did.
    """
    answer = settled[client_id]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _alone(handler: Handler, session: Session, request: Record) -> Record:
    answer = handler(session, request)
    return answer if isinstance(answer, Record) else answer.alone()


def _settle(deferred: Mapping[int, Deferred], passes: JointPasses) -> dict[int, Settled]:
    """Return client id -> its answer, computed together with others where it can be."""
    companies: defaultdict[Hashable, list[int]] = defaultdict(list)
    for client_id, one in deferred.items():
        companies[one.company(passes)].append(client_id)
    settled: dict[int, Settled] = {}
    for company, members in companies.items():
        if company is not None and passes.take(len(members)):
            everybody = [deferred[client_id] for client_id in members]
            answers = everybody[0].together(everybody, passes)
            try:
                settled.update(zip(members, map(_sent, answers), strict=True))
            except Exception:  # the rest each by itself, to find out who fails
                log.debug("clients could not compute together", exc_info=True)
        for client_id in members:
            if client_id not in settled:
                settled[client_id] = _sent(_attempt(deferred[client_id].alone))
    return settled


def _sent(answer: Settled) -> Settled:
    """Return an answer as it is sent: no device holds those of several clients at once."""
    return moved(answer, CPU) if isinstance(answer, Record) else answer


def _attempt(step: Callable[[], A]) -> A | Exception:
    try:
        return step()
    except Exception as error:
        return error
