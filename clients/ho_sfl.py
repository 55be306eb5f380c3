"""HO-SFL's client half: forward passes, seeds and scalars (arXiv 2603.14773).

Nothing here differentiates: every pass runs under inference mode.
"""

from __future__ import annotations

from torch import Tensor

from leansplit.clients.deferred import DeferredForward, DeferredProbe, DeferredProbedForward
from leansplit.clients.handlers import HandlerTable
from leansplit.clients.hosl import probed_forward
from leansplit.clients.replicas import remember_seeds, up_to_date
from leansplit.clients.session import Session
from leansplit.federated import HOSFLConfig
from leansplit.wire import (
    BehindReply,
    ForwardRequest,
    ProbedForwardRequest,
    ProbeReply,
    ProbeRequest,
    SmashedDataReply,
)
from leansplit.zeroth_order import SurrogateObjective

_ANCHOR = "anchor"
_ANCHOR_ROUND = "anchor-round"


def forward(session: Session, request: ForwardRequest) -> DeferredForward | BehindReply:
    """Steps 2 and 3: catch up, run one batch forward, keep z as the anchor, upload z and y."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    inputs, labels = session.batch(request.round)

    def keep_and_upload(smashed: Tensor) -> SmashedDataReply:
        session.memory.save(_ANCHOR, {"smashed_data": smashed})
        session.memory.note(_ANCHOR_ROUND, request.round)
        return SmashedDataReply(smashed_data=smashed, labels=labels, checksum=replica.checksum)

    micro_batch = session.config(HOSFLConfig).micro_batch
    model = session.client_model_to_evaluate
    return DeferredForward(model, replica, inputs, keep_and_upload, micro_batch)


def answer_probe(session: Session, request: ProbeRequest) -> DeferredProbe | BehindReply:
    """Step 5: v_p = <lambda, f_c(x; theta + mu u_p) - z> for every seed; P scalars go up.

    Of z only <lambda, z> is kept, so the probes hold no more than inference and lambda.

    Raises:
        ValueError: if no forward request came first.
    """
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    stored = session.memory.load(_ANCHOR)
    is_this_round = session.memory.noted(_ANCHOR_ROUND, 0) == request.round
    if stored is None or not is_this_round:
        raise ValueError(f"probe of round {request.round} came without a forward request")
    config = session.config(HOSFLConfig)
    inputs, _ = session.batch(request.round)
    objective = SurrogateObjective(
        session.client_model_to_evaluate, inputs, request.smashed_gradient, config.micro_batch
    )
    anchor = objective.value_of(stored.pop("smashed_data").to(inputs.device))
    session.memory.forget(_ANCHOR)

    def upload(differences: Tensor) -> ProbeReply:
        remember_seeds(session, request.round, request.seeds)
        return ProbeReply(scalars=differences.float())

    seeds = tuple(request.seeds.tolist())
    return DeferredProbe(objective, replica, seeds, config.zeroth_order, anchor, upload)


def probe_ahead(
    session: Session, request: ProbedForwardRequest
) -> DeferredProbedForward | BehindReply:
    """Steps 2, 3 and 5 in one: z and every perturbed z go up; the server compares them."""
    config = session.config(HOSFLConfig)
    return probed_forward(session, request, config.zeroth_order, config.micro_batch)


HANDLERS: HandlerTable = {
    "ho_sfl_forward": (ForwardRequest, forward),
    "ho_sfl_probe": (ProbeRequest, answer_probe),
    "ho_sfl_probe_ahead": (ProbedForwardRequest, probe_ahead),
}
