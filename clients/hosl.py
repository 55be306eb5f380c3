"""HOSL's client half: forward passes at the model and around it (arXiv 2601.10940).

Nothing here differentiates. The server evaluates the loss; the client rebuilds its step from the
seeds that it keeps and the mean differences that come with its next request.
"""

from __future__ import annotations

import torch

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.replicas import remember_seeds, up_to_date
from leansplit.clients.session import Session
from leansplit.federated import HOSLConfig
from leansplit.wire import BehindReply, HOSLReply, HOSLRequest
from leansplit.zeroth_order import forward_only, perturbed_points


def forward(session: Session, request: HOSLRequest) -> HOSLReply | BehindReply:
    """Catch up, then run one batch forward at theta and at every perturbed theta."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    model = session.client_model.eval()
    inputs, labels = session.batch(request.round)
    points = perturbed_points(
        replica.vector, request.seeds.tolist(), session.config(HOSLConfig).zeroth_order
    )
    perturbed = [forward_only(model, replica.spec.views(point), inputs) for point in points]
    smashed = forward_only(model, replica.parameters, inputs)
    remember_seeds(session, request.round, request.seeds)
    return HOSLReply(
        smashed_data=smashed,
        perturbed_data=torch.stack(perturbed),
        labels=labels,
        checksum=replica.checksum,
    )


HANDLERS: HandlerTable = {"hosl_forward": (HOSLRequest, forward)}
