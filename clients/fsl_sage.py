"""FSL-SAGE's client half: first-order steps on an imitated cut gradient (arXiv 2505.23182)."""

from __future__ import annotations

from leansplit.clients.auxiliary import (
    Uploads,
    keep_moments,
    kept_weights,
    local_model,
    round_optimizer,
)
from leansplit.clients.handlers import HandlerTable
from leansplit.clients.session import Session
from leansplit.federated import FSLSAGEConfig
from leansplit.first_order import imitated_step
from leansplit.noise import client_dropout_seed
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.wire import LocalTrainReply, LocalTrainRequest


def train(session: Session, request: LocalTrainRequest) -> LocalTrainReply:
    """Take all local steps of a round on the client model; upload every k-th batch.

    Raises:
        ValueError: if this client was never sent a head, or has lost it.
    """
    config = session.config(FSLSAGEConfig)
    local = local_model(session, request)
    # A head serves until the server aligns it anew.
    load_parameters_(local, request.weights | kept_weights(session, request.weights, "auxiliary"))
    optimizer = round_optimizer(session, list(local.client.parameters()))
    uploads = Uploads(session)
    for h in range(config.local_steps):
        inputs, labels = session.batch(request.round, h)
        seed = client_dropout_seed(config.root_seed, request.round, session.client_id, h)
        smashed = imitated_step(local, session.loss, optimizer, inputs, labels, dropout_seed=seed)
        uploads.add(h, smashed, labels)
    keep_moments(session, optimizer)
    trained = trainable_parameters(local.client)
    return uploads.reply({f"client.{name}": value for name, value in trained.items()})


HANDLERS: HandlerTable = {"fsl_sage_train": (LocalTrainRequest, train)}
