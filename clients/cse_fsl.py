"""CSE-FSL's client half: first-order steps on a local loss (arXiv 2507.15816)."""

from __future__ import annotations

from leansplit.clients.auxiliary import Uploads, keep_moments, round_optimizer
from leansplit.clients.handlers import HandlerTable
from leansplit.clients.local_loss import open_round
from leansplit.clients.session import Session
from leansplit.federated import CSEFSLConfig
from leansplit.first_order import local_loss_step
from leansplit.noise import client_dropout_seed
from leansplit.parameters import trainable_parameters
from leansplit.wire import LocalTrainReply, LocalTrainRequest


def train(session: Session, request: LocalTrainRequest) -> LocalTrainReply:
    """Take all local steps of a round on client model and head; upload every k-th batch."""
    config = session.config(CSEFSLConfig)
    opened = open_round(session, request)
    model = opened.model
    optimizer = round_optimizer(session, list(model.parameters()))
    uploads = Uploads(session)
    for h in range(config.local_steps):
        inputs, labels = opened.batch(h)
        seed = client_dropout_seed(config.root_seed, request.round, session.client_id, h)
        smashed = local_loss_step(model, session.loss, optimizer, inputs, labels, dropout_seed=seed)
        uploads.add(h, smashed, labels)
    keep_moments(session, optimizer)
    return uploads.reply(trainable_parameters(model))


HANDLERS: HandlerTable = {"cse_fsl_train": (LocalTrainRequest, train)}
