"""The zeroth-order client half of MU-SplitFed (arXiv 2510.21155) and ZO-SFL (arXiv 2603.14773).

Nothing here differentiates: every pass runs under inference mode. A client's directions come from
seeds that it derives itself, so between two messages it keeps its weights and moments only.
"""

from __future__ import annotations

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.session import Session
from leansplit.federated import TrainedVector, ZOSplitConfig
from leansplit.noise import perturbation_seeds
from leansplit.wire import (
    DifferencesRequest,
    ProbedSmashedDataReply,
    TrainForwardRequest,
    WeightsReply,
)
from leansplit.zeroth_order import estimate, probe_smashed_data

_WEIGHTS = "weights"
_MOMENTS = "moments"
_ROUND = "round"


def forward(session: Session, request: TrainForwardRequest) -> ProbedSmashedDataReply:
    """Start a round from the weights sent and upload the first probed smashed data."""
    optimizer = session.config(ZOSplitConfig).client_optimizer
    session.memory.save(_WEIGHTS, request.weights)
    session.memory.note(_ROUND, request.round)
    if not optimizer.outlives_round:
        session.memory.forget(_MOMENTS)
    # Moments are not used before the step, but a device holds them while it probes.
    theta = TrainedVector(session.here(request.weights), optimizer, session.memory.load(_MOMENTS))
    return _probe(session, theta, request.round, request.local_step)


def step(session: Session, request: DifferencesRequest) -> ProbedSmashedDataReply | WeightsReply:
    """Rebuild the estimate from the scalars, take one step, go on with the next batch or end.

    Raises:
        ValueError: if the round was not started at this client.
    """
    config = session.config(ZOSplitConfig)
    weights = session.memory.load(_WEIGHTS)
    if weights is None or session.memory.noted(_ROUND, 0) != request.round:
        raise ValueError(f"scalars of round {request.round} came without a forward request")
    theta = TrainedVector(
        session.here(weights), config.client_optimizer, session.memory.load(_MOMENTS)
    )
    seeds = _seeds(session, request.round, request.local_step)
    theta.step_(
        estimate(
            theta.spec, seeds, request.scalars, config.zeroth_order, device=theta.vector.device
        )
    )
    optimizer = config.client_optimizer
    if optimizer.outlives_round if request.is_last else optimizer.outlives_batch:
        session.memory.save(_MOMENTS, theta.moments)
    if request.is_last:
        session.memory.forget(_WEIGHTS)
        return WeightsReply(weights=theta.parameters)
    session.memory.save(_WEIGHTS, theta.parameters)
    return _probe(session, theta, request.round, request.local_step + 1)


def _probe(
    session: Session, theta: TrainedVector, round: int, local_step: int
) -> ProbedSmashedDataReply:
    config = session.config(ZOSplitConfig)
    inputs, labels = session.batch(round, local_step)
    probed = probe_smashed_data(
        session.client_model_to_evaluate,
        theta.spec,
        theta.vector,
        inputs,
        _seeds(session, round, local_step),
        config.zeroth_order,
        with_anchor=config.sends_anchor,
    )
    return ProbedSmashedDataReply(
        smashed_data=probed.anchor, plus=probed.plus, minus=probed.minus, labels=labels
    )


def _seeds(session: Session, round: int, local_step: int) -> tuple[int, ...]:
    """Return the seeds of the client's own directions, the same before and after the exchange."""
    config = session.config(ZOSplitConfig)
    return perturbation_seeds(
        config.root_seed,
        config.zeroth_order.num_perturbations,
        round=round,
        client_id=session.client_id,
        local_step=local_step,
    )


HANDLERS: HandlerTable = {
    "zo_split_forward": (TrainForwardRequest, forward),
    "zo_split_step": (DifferencesRequest, step),
}
