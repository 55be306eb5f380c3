"""DeComFL's client half: local zeroth-order steps that leave nothing but scalars (ICLR 2025)."""

from __future__ import annotations

import torch

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.loss_probe import probe_loss
from leansplit.clients.replicas import remember_seeds, up_to_date
from leansplit.clients.session import Session
from leansplit.federated import DeComFLConfig
from leansplit.wire import BehindReply, DeComFLReply, DeComFLRequest
from leansplit.zeroth_order import estimate


def probe_locally(session: Session, request: DeComFLRequest) -> DeComFLReply | BehindReply:
    """Steps 2 to 5: catch up, take h local steps, upload their scalars, forget the steps.

    The steps are taken on a copy, which is the rollback: nothing is ever undone. The last one
    would be seen by nobody, so it is not taken, and a single one needs no copy.
    """
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    config = session.config(DeComFLConfig).zeroth_order
    steps = request.seeds.tolist()
    local = replica.fork() if len(steps) > 1 else None
    scalars, num_samples = [], 0
    for h, seeds in enumerate(steps):
        v, size = probe_loss(session, local or replica, request.round, h, seeds, config)
        scalars.append(v)
        num_samples += size
        if local is not None and h + 1 < len(steps):
            local.step_(estimate(local.spec, seeds, v, config, device=local.vector.device))
    remember_seeds(session, request.round, request.seeds.reshape(-1))
    return DeComFLReply(
        scalars=torch.stack(scalars), num_samples=num_samples, checksum=replica.checksum
    )


HANDLERS: HandlerTable = {"decomfl_probe": (DeComFLRequest, probe_locally)}
