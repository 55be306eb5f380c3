"""HOSL's client half: forward passes at the model and around it (arXiv 2601.10940).

Nothing here differentiates. The server evaluates the loss; the client rebuilds its step from the
seeds that it keeps and the mean differences that come with its next request.
"""

from __future__ import annotations

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.replicas import remember_seeds, up_to_date
from leansplit.clients.session import Session
from leansplit.federated import HOSLConfig
from leansplit.wire import BehindReply, HOSLRequest, ProbedSmashedDataReply
from leansplit.zeroth_order import probe_smashed_data


def forward(session: Session, request: HOSLRequest) -> ProbedSmashedDataReply | BehindReply:
    """Catch up, then run one batch forward at theta and at every perturbed theta."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    inputs, labels = session.batch(request.round)
    probed = probe_smashed_data(
        session.client_model.eval(),
        replica.spec,
        replica.vector,
        inputs,
        request.seeds.tolist(),
        session.config(HOSLConfig).zeroth_order,
        with_anchor=True,  # the server trains on it
    )
    remember_seeds(session, request.round, request.seeds)
    return ProbedSmashedDataReply(
        smashed_data=probed.anchor,
        plus=probed.plus,
        minus=probed.minus,
        labels=labels,
        checksum=replica.checksum,
    )


HANDLERS: HandlerTable = {"hosl_forward": (HOSLRequest, forward)}
