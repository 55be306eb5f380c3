"""The frozen control's client half: one forward pass of a model that never changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.replicas import up_to_date
from leansplit.clients.session import Session
from leansplit.federated import FrozenConfig
from leansplit.parameters import ParameterDict
from leansplit.sequences import join
from leansplit.wire import BehindReply, ForwardRequest, SmashedDataReply
from leansplit.zeroth_order import forward_only


def forward(session: Session, request: ForwardRequest) -> SmashedDataReply | BehindReply:
    """Run one batch forward, or once and for all the client's samples; upload z and y."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    model = session.client_model.eval()
    if session.config(FrozenConfig).features_once:
        labels = session.data.labels
        smashed = _features(session, model, replica.parameters)
    else:
        inputs, labels = session.batch(request.round)
        smashed = forward_only(model, replica.parameters, inputs)
    return SmashedDataReply(smashed_data=smashed, labels=labels, checksum=replica.checksum)


def _features(session: Session, model: nn.Module, parameters: ParameterDict) -> Tensor:
    """Return z of all samples, run in batches as large as those of training.

    Kernels round differently for other batch sizes, so the last batch is filled up from the start.
    """
    inputs = session.data.inputs
    size = min(session.plan.config.batch_size, len(inputs))
    filled = torch.arange(-(-len(inputs) // size) * size) % len(inputs)
    parts = [forward_only(model, parameters, inputs[part]) for part in torch.split(filled, size)]
    return join(parts)[: len(inputs)]


HANDLERS: HandlerTable = {
    "frozen_forward": (ForwardRequest, forward),
}
