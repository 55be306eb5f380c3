"""HO-FL's client half: zeroth order below the boundary, first order above it, all on the device.

Layers below the boundary run under inference mode only; the graph begins at the boundary.
"""

from __future__ import annotations

from torch import Tensor, stack

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.session import Session
from leansplit.devices import CPU
from leansplit.federated import HOFLConfig
from leansplit.hybrid_order import HybridTraining
from leansplit.noise import client_dropout_seed
from leansplit.parameters import load_parameters_, to_send
from leansplit.wire import HybridTrainReply, HybridTrainRequest

_AGREED = "agreed-moments"
_LATEST = "latest-moments"


def train(session: Session, request: HybridTrainRequest) -> HybridTrainReply:
    """Step 4: E local steps from the weights sent; scalars and the first-order segment go up."""
    config = session.config(HOFLConfig)
    segments = session.worker.segments_at(request.boundary)
    load_parameters_(session.worker.workload.model.full_model, request.weights)
    moments_round, moments = _moments(session, request.moments_round)
    # Its zeroth-order half is rebuilt by the server, which computes on the CPU.
    training = HybridTraining(segments, session.loss, config, moments, replica_device=CPU)
    scalars: list[Tensor] = []
    num_samples, loss_sum = 0, 0.0
    for h in range(config.local_steps):
        inputs, labels = session.batch(request.round, h)
        loss, v = training.step(
            inputs,
            labels,
            request.seeds[h].tolist() if request.seeds.numel() else (),
            dropout_seed=client_dropout_seed(config.root_seed, request.round, session.client_id, h),
        )
        scalars.append(v)
        num_samples += len(labels)
        loss_sum += loss * len(labels)
    if config.client_optimizer.outlives_round:
        session.memory.save(_LATEST, training.moments())
        session.memory.note(_LATEST, request.round)
    return HybridTrainReply(
        weights=to_send(segments.first_parameters),
        **({"scalars": stack(scalars)} if request.seeds.numel() else {}),
        num_samples=num_samples,
        loss=loss_sum / num_samples,
        checksum=training.finish(),
        moments_round=moments_round,
    )


def _moments(session: Session, agreed_round: int) -> tuple[int, dict[str, Tensor]]:
    """Return the moments to start from, and the participation that they are of (-1: zeros).

    The server rebuilds the zeroth-order half and must start from the same moments. An answer may
    have been lost on its way, so the client keeps the last moments that the server confirmed until
    it confirms newer ones.
    """
    if agreed_round < 0:
        return -1, {}
    memory = session.memory
    if memory.noted(_LATEST, -1) == agreed_round:
        memory.save(_AGREED, memory.load(_LATEST) or {})
        memory.note(_AGREED, agreed_round)
    if memory.noted(_AGREED, -1) != agreed_round:
        return -1, {}
    return agreed_round, memory.load(_AGREED) or {}


HANDLERS: HandlerTable = {"ho_fl_train": (HybridTrainRequest, train)}
