"""The frozen control's client half: one forward pass of a model that never changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leansplit.clients.deferred import DeferredForward
from leansplit.clients.handlers import HandlerTable
from leansplit.clients.replicas import up_to_date
from leansplit.clients.session import Session
from leansplit.devices import on
from leansplit.federated import FrozenConfig
from leansplit.parameters import ParameterDict
from leansplit.sequences import join
from leansplit.wire import BehindReply, ForwardRequest, SmashedDataReply
from leansplit.zeroth_order import forward_only


def forward(
    session: Session, request: ForwardRequest
) -> DeferredForward | SmashedDataReply | BehindReply:
    """Run one batch forward, or once and for all the client's samples; upload z and y."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    model, is_once = session.client_model_to_evaluate, session.config(FrozenConfig).features_once
    inputs, labels = (None, session.data.labels) if is_once else session.batch(request.round)

    def upload(smashed: Tensor) -> SmashedDataReply:
        return SmashedDataReply(smashed_data=smashed, labels=labels, checksum=replica.checksum)

    if inputs is None:
        theta = on(replica.vector, session.worker.device)
        return upload(_features(session, model, replica.spec.views(theta)))
    return DeferredForward(model, replica, inputs, upload)


def _features(session: Session, model: nn.Module, parameters: ParameterDict) -> Tensor:
    """Return z of all samples, run in batches as large as those of training.

    Kernels round differently for other batch sizes, so the last batch is filled up from the start.
    """
    inputs, device = session.data.inputs, session.worker.device
    size = min(session.plan.config.batch_size, len(inputs))
    filled = torch.arange(-(-len(inputs) // size) * size) % len(inputs)
    parts = [
        forward_only(model, parameters, inputs[part].to(device)).cpu()
        for part in torch.split(filled, size)
    ]
    return join(parts)[: len(inputs)]


HANDLERS: HandlerTable = {
    "frozen_forward": (ForwardRequest, forward),
}
