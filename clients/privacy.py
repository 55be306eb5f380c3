"""Clips and noises what a client uploads, whatever its method: the last thing before it is sent.

Smashed data and scalars of every answer pass through here, so a method that takes ``privacy`` keys
cannot forget one. What the client itself goes on with stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

from leansplit.clients.faults import exchange_of
from leansplit.clients.session import Session
from leansplit.federated import NoisedConfig
from leansplit.wire import Kind, Payloads, ProbedSmashedDataReply, Record, with_payloads
from leansplit.zeroth_order import ProbedSmashedData


def released(session: Session, request: Record, reply: Record) -> Record:
    """Return what a client sends in place of ``reply``."""
    config, plan, client_id = session.plan.config, session.plan, session.client_id
    if not isinstance(config, NoisedConfig) or not config.privacy.is_on:
        return reply
    round, first = getattr(request, "round", 0), exchange_of(request)
    if isinstance(reply, ProbedSmashedDataReply):
        probed = ProbedSmashedData(reply.smashed_data, reply.plus, reply.minus)
        kept = config.released_probes(probed, round, client_id, first, has_mask=plan.has_mask)
        return replace(reply, smashed_data=kept.anchor, plus=kept.plus, minus=kept.minus)

    def change(kind: Kind, tensors: Payloads) -> Payloads | None:
        if kind == "scalars":
            return {
                name: config.released_scalars(v, round, client_id) for name, v in tensors.items()
            }
        if kind != "smashed_data":
            return None
        return {
            name: config.released_smashed_data(
                z, round, client_id, first + position, has_mask=plan.has_mask
            )
            for position, (name, z) in enumerate(tensors.items())
        }

    return with_payloads(reply, change)
