"""FedZO's client half: local zeroth-order training of the whole model (arXiv 2201.09531).

Directions are drawn at the client from seeds of its own, which never cross.
"""

from __future__ import annotations

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.loss_probe import probe_loss
from leansplit.clients.session import Session
from leansplit.federated import FedZOConfig, TrainedVector
from leansplit.noise import local_perturbation_seeds
from leansplit.parameters import to_send
from leansplit.wire import FedZOReply, FedZORequest
from leansplit.zeroth_order import estimate

_MOMENTS = "moments"


def train(session: Session, request: FedZORequest) -> FedZOReply:
    """Steps 2 and 3: H zeroth-order steps from the weights sent; the trained model goes up."""
    config = session.config(FedZOConfig)
    keeps_moments = config.client_optimizer.outlives_round
    local = TrainedVector(
        session.here(request.weights),
        config.client_optimizer,
        session.memory.load(_MOMENTS) if keeps_moments else None,
    )
    num_samples = 0
    for h in range(config.local_steps):
        seeds = local_perturbation_seeds(
            config.root_seed,
            config.zeroth_order.num_perturbations,
            round=request.round,
            client_id=session.client_id,
            local_step=h,
        )
        v, size = probe_loss(session, local, request.round, h, seeds, config.zeroth_order)
        local.step_(estimate(local.spec, seeds, v, config.zeroth_order, device=local.vector.device))
        num_samples += size
    if keeps_moments:
        session.memory.save(_MOMENTS, local.moments)
    return FedZOReply(weights=to_send(local.parameters), num_samples=num_samples)


HANDLERS: HandlerTable = {"fedzo_train": (FedZORequest, train)}
