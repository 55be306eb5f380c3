"""A client that counts what an answer costs it: FLOPs, and the memory that it holds at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from leansplit.clients.session import Session
from leansplit.costs import ClientStep, held_weights, measure_step
from leansplit.strategies.flower_records import CostReport
from leansplit.telling import leave_out
from leansplit.zeroth_order import unshared_directions

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True)
class _WatchedSession(Session):
    """A session that notes the shapes of its batches: local step -> shape of the inputs."""

    batches: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def batch(self, round: int, local_step: int = 0) -> tuple[Tensor, Tensor]:
        """Return the (inputs, labels) of one step."""
        inputs, labels = super().batch(round, local_step)
        self.batches[local_step] = tuple(inputs.shape)
        return inputs, labels


def watched(
    session: Session, handler: Callable[[Session, Q], R], request: Q
) -> tuple[R, CostReport]:
    """Return the handler's answer, the same as ever, and what it cost.

    A device holds frozen weights and buffers all along. Not counted is what it does not hold: the
    client's other samples, which are on its disk, weights as they came, which become the model's,
    directions kept for other clients.
    """
    noting = _WatchedSession(session.client_id, session.plan, session.worker, session.memory)
    worker = session.worker
    answers: list[R] = []
    model = worker.workload.model
    kept = model.full_model if session.plan.is_whole_model else model.client_model

    def run() -> None:
        received = getattr(request, "weights", {})
        own = worker.client_data(session.client_id)
        stored = getattr(own, "stored", None) or (own.inputs, own.labels)
        leave_out([*stored, *received.values()])
        answers.append(handler(noting, request))

    with unshared_directions():
        costs = measure_step(
            ClientStep(run=run, weights=held_weights(worker.local_model or kept, but_trained=True))
        )
    report = CostReport(costs.flops, costs.repeated_flops, costs.peak_memory_bytes, noting.batches)
    return answers[0], report
