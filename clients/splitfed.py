"""The first-order client half of SFLV1 and SFLV2 (Thapa et al., AAAI 2022).

The graph of a forward pass cannot outlive the message that made it: a SuperNode may start a new
process for every message. The client therefore runs the batch forward again when lambda arrives;
the bits are the same, and accounts of a client's compute count the pass once. With
``client_backward == "recompute"`` no graph would outlive the pass on a device either, and its
passes count as what they are.
"""

from __future__ import annotations

from torch.optim import Optimizer

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.session import Session
from leansplit.federated import (
    OptimizerConfig,
    SplitFedConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.first_order import (
    backward_step,
    recompute_forward,
    recompute_step,
    train_forward,
)
from leansplit.models import chain
from leansplit.noise import client_dropout_seed
from leansplit.parameters import load_parameters_, to_send, trainable_parameters
from leansplit.telling import repeated_pass
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
    return _smashed_data(session, request.round, request.local_step)


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
    config = _optimizer_config(session)
    optimizer = build_optimizer(config, model.parameters())
    load_optimizer_state_(optimizer, session.memory.load(_MOMENTS) or {})
    _step(session, optimizer, request)
    trained = trainable_parameters(model)
    is_round_over = request.is_last
    if config.outlives_round if is_round_over else config.outlives_batch:
        session.memory.save(_MOMENTS, optimizer_state(optimizer))
    if is_round_over:
        session.memory.forget(_WEIGHTS)
        return WeightsReply(weights=to_send(trained))
    session.memory.save(_WEIGHTS, trained)
    return _smashed_data(session, request.round, request.local_step + 1)


def _smashed_data(session: Session, round: int, local_step: int) -> SmashedDataReply:
    """Run a batch forward."""
    config, model = session.config(SplitFedConfig), session.client_model
    inputs, labels = session.batch(round, local_step)
    seed = client_dropout_seed(config.root_seed, round, session.client_id, local_step)
    if config.client_backward == "recompute":
        smashed = recompute_forward(
            chain(model), inputs, dropout_seed=seed, micro_batch=config.micro_batch
        )
    else:
        smashed = train_forward(model, inputs, dropout_seed=seed).detach()
    return SmashedDataReply(smashed_data=smashed, labels=labels)


def _step(session: Session, optimizer: Optimizer | None, request: BackwardRequest) -> None:
    """Take one step on the client model with lambda."""
    config, model = session.config(SplitFedConfig), session.client_model
    inputs, _ = session.batch(request.round, request.local_step)
    seed = client_dropout_seed(
        config.root_seed, request.round, session.client_id, request.local_step
    )
    if config.client_backward == "recompute":
        recompute_step(
            optimizer,
            chain(model),
            inputs,
            request.smashed_gradient,
            dropout_seed=seed,
            micro_batch=config.micro_batch,
        )
    else:
        with repeated_pass():
            smashed = train_forward(model, inputs, dropout_seed=seed)
        backward_step(optimizer, smashed, request.smashed_gradient)


def _optimizer_config(session: Session) -> OptimizerConfig:
    return session.config(SplitFedConfig).client_optimizer


HANDLERS: HandlerTable = {
    "splitfed_forward": (TrainForwardRequest, forward),
    "splitfed_backward": (BackwardRequest, backward),
}
