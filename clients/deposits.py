"""What a client remembers, handed to the server for safe keeping and taken back.

A checkpoint of the server alone could not bring back what only clients know, such as the moments
of their optimizers. The server stores the bytes as they are and never looks inside.
"""

from __future__ import annotations

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.session import Session
from leansplit.federated import NoisedConfig
from leansplit.wire import DepositReply, DepositRequest, RestoreReply, RestoreRequest


def deposit(session: Session, request: DepositRequest) -> DepositReply:
    """Hand over everything that the client remembers.

    Raises:
        UserError: if the client noises its uploads in secret: it remembers smashed data without.
    """
    config = session.plan.config
    if isinstance(config, NoisedConfig):
        config.privacy.require_repeatable()
    return DepositReply(memory=session.memory.blobs(), notes=session.memory.notes())


def restore(session: Session, request: RestoreRequest) -> RestoreReply:
    """Remember what was handed over, and nothing else."""
    session.memory.replace(request.memory, request.notes)
    return RestoreReply()


HANDLERS: HandlerTable = {
    "deposit": (DepositRequest, deposit),
    "restore": (RestoreRequest, restore),
}
