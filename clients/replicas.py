"""Where a client's replica lives, and how a request brings it up to date."""

from __future__ import annotations

import torch

from leansplit.clients.handlers import HandlerTable
from leansplit.clients.session import Session
from leansplit.federated import NEVER, OptimizerConfig, Replica, ReplicatedConfig
from leansplit.telling import count_moments
from leansplit.wire import BehindReply, CatchUpRequest, SyncReply, SyncRequest
from leansplit.zeroth_order import ZerothOrderConfig

_REPLICA = "replica"
_SEEDS = "seeds"
_VERSION = "version"
_SEED_ROUND = "seed-round"


def remember_seeds(session: Session, round: int, seeds: torch.Tensor) -> None:
    """Keep the seeds of the round just probed: its mean scalars come with the next request."""
    session.memory.save(_SEEDS, {"seeds": seeds})
    session.memory.note(_SEED_ROUND, round)


def up_to_date(session: Session, request: CatchUpRequest) -> Replica | BehindReply:
    """Return the client's replica at ``request.target_version``, or say what is missing.

    With ``replica_storage == "context"`` the replica is this client's own, read from and written
    to its context. With ``"worker"`` the process holds one replica for all its clients: they are
    all equal at the same version, so a client's own memory is its version alone.
    """
    is_shared = session.plan.replica_storage == "worker"
    own_version = session.memory.noted(_VERSION, NEVER)
    held = session.worker.shared_replica if is_shared else _load(session, own_version)
    held_version = NEVER if held is None else held.version
    if held is None or held.version < request.target_version or request.is_resync:
        held = _advance(session, held, request)
    if held is None or held.version != request.target_version:
        has_own = own_version >= 0 or request.weights_version >= 0
        return BehindReply(version=held_version, is_worker_gap=is_shared and has_own)
    if is_shared:
        session.worker.shared_replica = held
    elif held_version != held.version or request.weights_version >= 0:
        session.memory.save(_REPLICA, held.state())
    session.memory.note(_VERSION, held.version)
    count_moments(held.kept_optimizer)
    return held


def synchronise(session: Session, request: SyncRequest) -> SyncReply | BehindReply:
    """Take the updates that are still missing."""
    replica = up_to_date(session, request)
    if isinstance(replica, BehindReply):
        return replica
    return SyncReply(version=replica.version, checksum=replica.checksum)


def _configs(session: Session) -> tuple[OptimizerConfig, ZerothOrderConfig]:
    config = session.plan.config
    if isinstance(config, ReplicatedConfig):
        return config.client_optimizer, config.zeroth_order
    return OptimizerConfig(), ZerothOrderConfig()  # a frozen client's replica never moves


def _load(session: Session, version: int) -> Replica | None:
    state = session.memory.load(_REPLICA)
    return None if state is None else Replica.from_state(state, *_configs(session), version=version)


def _advance(session: Session, replica: Replica | None, request: CatchUpRequest) -> Replica | None:
    """Apply what the request carries, if it joins up with the replica; else leave it alone."""
    version = NEVER if replica is None else replica.version
    if request.is_resync or request.weights_version > max(version, 0):
        replica = Replica.from_state(
            request.weights, *_configs(session), version=request.weights_version
        )
    elif request.weights_version == 0 and replica is None:
        replica = Replica(request.weights, *_configs(session))
    seeds = _seeds_of(session, request.known_round)
    if replica is None or seeds is None or replica.version < request.base_version:
        return replica
    replica.catch_up_(request.updates(seeds, _seed_pool(session)))
    return replica


def _seed_pool(session: Session) -> tuple[int, ...]:
    _, zeroth_order = _configs(session)
    return zeroth_order.pool(session.plan.config.root_seed)


def _seeds_of(session: Session, round: int) -> tuple[int, ...] | None:
    """Return the seeds of ``round``; None if they should be known here but are not."""
    if round < 0:
        return ()
    stored = session.memory.load(_SEEDS)
    if stored is None or session.memory.noted(_SEED_ROUND, NEVER) != round:
        return None
    return tuple(stored["seeds"].tolist())


HANDLERS: HandlerTable = {"synchronise": (SyncRequest, synchronise)}
