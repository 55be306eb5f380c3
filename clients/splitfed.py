"""The first-order client half of SFLV1 and SFLV2 (Thapa et al., AAAI 2022).

The graph of a forward pass cannot outlive the message that made it: a SuperNode may start a new
process for every message. The client therefore runs the batch forward again when lambda arrives;
the bits are the same, and accounts of a client's compute count the pass once.
"""

from __future__ import annotations

from torch import Tensor

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.session import Session
from leansplit.federated import (
    OptimizerConfig,
    SplitFedConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.first_order import backward_step, train_forward
from leansplit.noise import client_dropout_seed
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.wire import BackwardRequest, SmashedDataReply, TrainForwardRequest, WeightsReply

_WEIGHTS = "weights"
_MOMENTS = "moments"
_ROUND = "round"


def forward(session: Session, request: TrainForwardRequest) -> SmashedDataReply:
    """Start a round from the weights sent and upload the first smashed data."""
    session.memory.save(_WEIGHTS, request.weights)
    session.memory.note(_ROUND, request.round)
    if not _optimizer_config(session).outlives_round:
        session.memory.forget(_MOMENTS)
    load_parameters_(session.client_model, request.weights)
    smashed, labels = _forward(session, request.round, request.local_step)
    return SmashedDataReply(smashed_data=smashed.detach(), labels=labels)


def backward(session: Session, request: BackwardRequest) -> SmashedDataReply | WeightsReply:
    """Back-propagate lambda, take one step, then answer with the next batch or the weights.

    Raises:
        ValueError: if the round was not started at this client.
    """
    weights = session.memory.load(_WEIGHTS)
    if weights is None or session.memory.noted(_ROUND, 0) != request.round:
        raise ValueError(f"backward of round {request.round} came without a forward request")
    model = session.client_model
    load_parameters_(model, weights)
    optimizer = build_optimizer(_optimizer_config(session), model.parameters())
    load_optimizer_state_(optimizer, session.memory.load(_MOMENTS) or {})
    smashed, _ = _forward(session, request.round, request.local_step)
    backward_step(optimizer, smashed, request.smashed_gradient)
    trained = trainable_parameters(model)
    config = _optimizer_config(session)
    is_round_over = request.is_last
    if config.outlives_round if is_round_over else config.outlives_batch:
        session.memory.save(_MOMENTS, optimizer_state(optimizer))
    if is_round_over:
        session.memory.forget(_WEIGHTS)
        return WeightsReply(weights={name: value.clone() for name, value in trained.items()})
    session.memory.save(_WEIGHTS, trained)
    smashed, labels = _forward(session, request.round, request.local_step + 1)
    return SmashedDataReply(smashed_data=smashed.detach(), labels=labels)


def _forward(session: Session, round: int, local_step: int) -> tuple[Tensor, Tensor]:
    inputs, labels = session.batch(round, local_step)
    seed = client_dropout_seed(session.plan.config.root_seed, round, session.client_id, local_step)
    return train_forward(session.client_model, inputs, dropout_seed=seed), labels


def _optimizer_config(session: Session) -> OptimizerConfig:
    return session.config(SplitFedConfig).client_optimizer


HANDLERS: HandlerTable = {
    "splitfed_forward": (TrainForwardRequest, forward),
    "splitfed_backward": (BackwardRequest, backward),
}
