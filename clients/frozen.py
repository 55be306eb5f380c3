"""The frozen control's client half: one forward pass of a model that never changes."""

from __future__ import annotations

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.replicas import up_to_date
from leansplit.clients.session import Session
from leansplit.wire import BehindReply, ForwardRequest, SmashedDataReply
from leansplit.zeroth_order import forward_only


def forward(session: Session, request: ForwardRequest) -> SmashedDataReply | BehindReply:
    """Run one batch forward and upload smashed data and labels."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    inputs, labels = session.batch(request.round)
    smashed = forward_only(session.client_model.eval(), replica.parameters, inputs)
    return SmashedDataReply(smashed_data=smashed, labels=labels, checksum=replica.checksum)


HANDLERS: HandlerTable = {
    "frozen_forward": (ForwardRequest, forward),
}
