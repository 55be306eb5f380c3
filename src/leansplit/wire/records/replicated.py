"""Messages of the methods whose clients all hold the same replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from leansplit.federated.update_log import Update
from leansplit.parameters import ParameterDict
from leansplit.wire.records.base import Record, payload


@dataclass(frozen=True, kw_only=True)
class CatchUpRequest(Record):
    """Server to client: what brings a replica up to date, before anything else is asked of it.

    The update of the last round rides on the next request, which saves a round trip. A client
    holds the seeds of the last round that it answered, so of that round only the mean scalars
    are sent; rounds that it missed come whole.
    """

    round: int
    target_version: int = 0
    """The version that the replica must reach."""
    base_version: int = 0
    """The oldest version that the updates below join up with."""
    weights: ParameterDict = payload("weights", many=True, default_factory=dict)
    """Initial parameters, of version 0; or the server's whole replica, moments included."""
    weights_version: int = -1
    """Version of ``weights``; -1 if there are none."""
    is_resync: bool = False
    """True: ``weights`` replace whatever replica there is; else one of an older version only."""
    known_round: int = -1
    """The round whose seeds the client holds; -1 if there is none."""
    scalars: Tensor = payload("scalars", default_factory=lambda: torch.empty(0))
    """Mean scalars [P] of ``known_round``, float32."""
    missed_rounds: list[int] = field(default_factory=list)
    missed_seeds: Tensor = payload(
        "catch_up", default_factory=lambda: torch.empty(0, 0, dtype=torch.uint32)
    )
    """Seeds [R, P] of the missed rounds, uint32; absent with a seed pool."""
    missed_places: Tensor = payload(
        "catch_up", default_factory=lambda: torch.empty(0, 0, dtype=torch.uint8)
    )
    """Their places in the seed pool [R, P], uint8 or uint16; absent without one."""
    missed_scalars: Tensor = payload("catch_up", default_factory=lambda: torch.empty(0, 0))
    """Mean scalars [R, P] of the missed rounds, float32."""

    def updates(self, known_seeds: tuple[int, ...], pool: Sequence[int] = ()) -> list[Update]:
        """Return the updates that this request carries, oldest first.

        Args:
            known_seeds: the seeds that the client holds for ``known_round``.
            pool: the run's seed pool; empty without one.

        Raises:
            ValueError: if a place is not one of the pool's.
        """
        carried = []
        if self.known_round >= 0:
            carried.append(Update(self.known_round, known_seeds, tuple(self.scalars.tolist())))
        places = self.missed_places.tolist()
        if (highest := max(map(max, places), default=-1)) >= len(pool):
            raise ValueError(f"place {highest} is not in a seed pool of {len(pool)}")
        for round, seeds, scalars in zip(
            self.missed_rounds,
            [[pool[place] for place in step] for step in places] or self.missed_seeds.tolist(),
            self.missed_scalars.tolist(),
            strict=True,
        ):
            carried.append(Update(round, tuple(seeds), tuple(scalars)))
        return carried


@dataclass(frozen=True, kw_only=True)
class ForwardRequest(CatchUpRequest):
    """HO-SFL and frozen client, server to client: run your model on the next batch."""


@dataclass(frozen=True, kw_only=True)
class ProbedForwardRequest(CatchUpRequest):
    """HOSL, and HO-SFL that probes ahead, server to client: run your next batch forward, at your
    model and at the perturbed ones; the answer is a :class:`ProbedSmashedDataReply`.
    """

    seeds: Tensor = payload("seeds")
    """Perturbation seeds [P], uint32."""


@dataclass(frozen=True, kw_only=True)
class SyncRequest(CatchUpRequest):
    """HO-SFL, server to client: nothing but the catch-up."""


@dataclass(frozen=True, kw_only=True)
class SyncReply(Record):
    """Client to server: where the replica stands after a final catch-up."""

    version: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class BehindReply(Record):
    """Client to server: the replica cannot be brought up to date from what was sent."""

    version: int
    """The version that the replica is at; -1 if there is none."""
    is_worker_gap: bool
    """True if the client itself is up to date and only the simulation's worker process lags."""


@dataclass(frozen=True, kw_only=True)
class ProbeRequest(CatchUpRequest):
    """HO-SFL, server to client: probe these directions against this gradient.

    The client is up to date since the forward request of the same round; the catch-up fields are
    used only after a fault.
    """

    continues_round: ClassVar[bool] = True

    smashed_gradient: Tensor = payload("smashed_gradient")
    """lambda, the shape of the client's smashed data."""
    seeds: Tensor = payload("seeds")
    """Perturbation seeds [P], uint32."""


@dataclass(frozen=True, kw_only=True)
class ProbeReply(Record):
    """HO-SFL, client to server: the directional differences v."""

    scalars: Tensor = payload("scalars")
    """v [P], float32, not divided by mu."""
