"""HOSL's client half: forward passes at the model and around it (arXiv 2601.10940).

Nothing here differentiates. The server evaluates the loss; the client rebuilds its step from the
seeds that it keeps and the mean differences that come with its next request.
"""

from __future__ import annotations

from leansplit.clients.deferred import DeferredProbedForward
from leansplit.clients.handlers import HandlerTable
from leansplit.clients.replicas import remember_seeds, up_to_date
from leansplit.clients.session import Session
from leansplit.federated import HOSLConfig
from leansplit.wire import BehindReply, ProbedForwardRequest, ProbedSmashedDataReply
from leansplit.zeroth_order import ProbedSmashedData, ZerothOrderConfig


def forward(session: Session, request: ProbedForwardRequest) -> DeferredProbedForward | BehindReply:
    """Catch up, then run one batch forward at theta and at every perturbed theta."""
    return probed_forward(session, request, session.config(HOSLConfig).zeroth_order)


def probed_forward(
    session: Session,
    request: ProbedForwardRequest,
    zeroth_order: ZerothOrderConfig,
    micro_batch: int = 0,
) -> DeferredProbedForward | BehindReply:
    """Answer for HOSL, and for HO-SFL that probes ahead; ``micro_batch`` samples at once."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    inputs, labels = session.batch(request.round)

    def upload(probed: ProbedSmashedData) -> ProbedSmashedDataReply:
        remember_seeds(session, request.round, request.seeds)
        return ProbedSmashedDataReply(
            smashed_data=probed.anchor,
            plus=probed.plus,
            minus=probed.minus,
            labels=labels,
            checksum=replica.checksum,
        )

    model, seeds = session.client_model_to_evaluate, tuple(request.seeds.tolist())
    return DeferredProbedForward(model, replica, inputs, seeds, zeroth_order, upload, micro_batch)


HANDLERS: HandlerTable = {"hosl_forward": (ProbedForwardRequest, forward)}
