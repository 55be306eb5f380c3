"""HERON-SFL's client half: zeroth-order steps on a local loss (arXiv 2601.09076).

Nothing here differentiates: every pass runs under inference mode, and in evaluation mode, so that
all probes of a step see the same function.
"""

from __future__ import annotations

from leansplit.clients.auxiliary import Uploads, keep_moments, round_optimizer
from leansplit.clients.handlers import HandlerTable
from leansplit.clients.local_loss import open_round
from leansplit.clients.session import Session
from leansplit.federated import HeronSFLConfig
from leansplit.noise import local_perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.telling import leave_out
from leansplit.wire import LocalTrainReply, LocalTrainRequest
from leansplit.zeroth_order import LocalLossObjective, estimate, probe


def train(session: Session, request: LocalTrainRequest) -> LocalTrainReply:
    """Take all local steps of a round on client model and head; upload every k-th batch."""
    config = session.config(HeronSFLConfig)
    zo = config.zeroth_order
    opened = open_round(session, request)
    model = opened.model.eval()
    start = trainable_parameters(model)
    spec = ParameterSpec.of(start)
    theta = spec.flatten(start)  # one vector, so one direction spans client and head
    leave_out(start.values())
    optimizer = round_optimizer(session, [theta])
    uploads = Uploads(session)
    for h in range(config.local_steps):
        inputs, labels = opened.batch(h)
        objective = LocalLossObjective(model, session.loss, inputs, labels)
        seeds = local_perturbation_seeds(
            config.root_seed,
            zo.num_perturbations,
            round=request.round,
            client_id=session.client_id,
            local_step=h,
        )
        # The unperturbed pass anchors the forward difference and makes the upload.
        smashed = anchor = None
        if zo.estimator == "forward" or h in config.upload_steps:
            smashed, anchor = objective.evaluate_with_smashed_data(spec.views(theta))
        differences = probe(objective, spec, theta, seeds, zo, anchor=anchor)
        if optimizer is not None:
            theta.grad = estimate(spec, seeds, differences, zo, device=theta.device)
            optimizer.step()
            theta.grad = None
        uploads.add(h, smashed, labels)
    keep_moments(session, optimizer)
    return uploads.reply(spec.views(theta))


HANDLERS: HandlerTable = {"heron_sfl_train": (LocalTrainRequest, train)}
