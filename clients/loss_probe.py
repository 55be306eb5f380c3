"""The zeroth-order step of clients that hold the whole model: they probe their own loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from leansplit.clients.session import Session
from leansplit.devices import on
from leansplit.federated import Replica, TrainedVector
from leansplit.zeroth_order import LossObjective, ZerothOrderConfig, probe


def probe_loss(
    session: Session,
    at: TrainedVector | Replica,
    round: int,
    local_step: int,
    seeds: Sequence[int],
    config: ZerothOrderConfig,
) -> tuple[Tensor, int]:
    """Probe the loss of one batch at a client's current parameters.

    Every pass of the batch is in evaluation mode: all probes of a step see the same function.

    Args:
        session: the client's data, model and loss.
        at: the parameters to probe around; not written.
        round: the current round.
        local_step: which of the round's batches, 0-based.
        seeds: one perturbation seed for each direction.
        config: estimator, mu and distribution.

    Returns:
        (v as float32 [P], as it crosses the wire; samples of the batch).
    """
    inputs, labels = session.batch(round, local_step)
    model = session.worker.workload.model.full_model.eval()
    objective = LossObjective(model, session.loss, inputs, labels)
    differences = probe(objective, at.spec, on(at.vector, inputs.device), seeds, config)
    return differences.float(), len(labels)
