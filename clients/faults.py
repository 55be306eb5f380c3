"""Faults that the plan asks a client to inject into itself (docs/faults.md)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from flwr.app import Context

from leansplit.clients.workload import forget_workers
from leansplit.federated import Fault
from leansplit.strategies.failures import SILENT
from leansplit.strategies.flower_records import IN_PROCESS
from leansplit.wire import ClientPlan, DepositRequest, Record, RestoreRequest, SyncRequest

T = TypeVar("T")

_NO_STEPS = (DepositRequest, RestoreRequest, SyncRequest)


class InjectedFault(Exception):
    """A client's step that was made to fail."""


class WorkerDied(Exception):
    """Stands for the end of a process that cannot be ended: it serves everybody."""


def exchange_of(request: Record) -> int:
    """Return which exchange of its round a request belongs to: 0 opens the round."""
    return 1 + getattr(request, "local_step", 0) if request.continues_round else 0


def strikes(plan: ClientPlan, client_id: int, request: Record) -> Fault | None:
    """Return the fault that strikes a client at a request; requests between rounds are spared."""
    if not plan.faults.are_any or isinstance(request, _NO_STEPS):
        return None
    round = getattr(request, "round", 0)
    return plan.faults.strikes(plan.config.root_seed, round, client_id, exchange_of(request))


def die_if_struck(faults: Iterable[Fault | None], context: Context) -> None:
    """End the process, with all that it holds, if one of the faults says so.

    Raises:
        WorkerDied: in a grid whose nodes are function calls; what the process held is forgotten.
    """
    if "die" not in faults:
        return
    if not context.node_config.get(IN_PROCESS):
        os._exit(1)
    forget_workers()
    raise WorkerDied("the worker process died (injected)")


def takes_its_step(fault: Fault | None) -> bool:
    """Say whether a client computes its answer before a fault strikes, if one does."""
    return fault in (None, "late")


def disturbed(fault: Fault | None, step: Callable[[], T]) -> T:
    """Return the answer of a client's step, unless a fault strikes.

    Raises:
        InjectedFault: if one does.
    """
    if not takes_its_step(fault):
        if fault in ("drop", "vanish"):
            raise InjectedFault(f"{SILENT} (injected: {fault})")
        raise InjectedFault("the step failed (injected)")
    answer = step()
    if fault == "late":
        raise InjectedFault(f"{SILENT} (injected: late)")
    return answer
