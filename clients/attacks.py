"""What a hostile client does to its labels, and to what it sends up (docs/faults.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from leansplit.federated import AttackConfig, ClientData, num_samples_of, samples_at
from leansplit.noise import derive_seed, numpy_generator
from leansplit.wire import ClientPlan, Kind, Payloads, Record, with_payloads

if TYPE_CHECKING:
    from leansplit.clients.session import Session

_START = "attack-start"


@dataclass(frozen=True)
class Relabelled:
    """Samples with their labels in reverse order.

    Attributes:
        data: as the client has them.
        num_classes: C.
    """

    data: ClientData
    num_classes: int

    @property
    def inputs(self) -> Tensor:
        """Shape [n, ...]."""
        return self.data.inputs

    @property
    def labels(self) -> Tensor:
        """Shape [n]."""
        return self.num_classes - 1 - self.data.labels

    def samples_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return (inputs, labels) at ``positions``."""
        inputs, labels = samples_at(self.data, positions.numpy())
        return inputs, self.num_classes - 1 - labels

    def __len__(self) -> int:
        return num_samples_of(self.data)


def attack_of(plan: ClientPlan, client_id: int) -> AttackConfig | None:
    """Return what a client does wrong on purpose; None if it is honest."""
    seed = plan.config.root_seed
    return plan.attack if plan.attack.is_hostile(seed, client_id, plan.num_clients) else None


def relabelled(attack: AttackConfig | None, data: ClientData, num_classes: int) -> ClientData:
    """Return a client's samples as it works on them."""
    if attack is None or attack.kind != "label_flip":
        return data
    return Relabelled(data, num_classes)


def corrupted(session: Session, request: Record, reply: Record) -> Record:
    """Return what a client sends in place of its honest ``reply``.

    A hostile client remembers the weights that it was sent: its later answers differ from those.
    """
    attack = attack_of(session.plan, session.client_id)
    if attack is None or attack.kind == "label_flip":
        return reply
    sent: Mapping[str, Tensor] = getattr(request, "weights", {})
    if sent:
        session.memory.save(_START, sent)
    start = session.memory.load(_START) or {}
    round = getattr(request, "round", 0)

    def wrong(kind: Kind, tensors: Payloads) -> Payloads | None:
        if kind not in ("scalars", "weights") and attack.kind != "nan":
            return None
        origin = start if kind == "weights" else {}
        return corrupted_tensors(session, attack, round, tensors, origin)

    return with_payloads(reply, wrong)


def corrupted_tensors(
    session: Session,
    attack: AttackConfig,
    round: int,
    tensors: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return what is sent in place of ``tensors``; ``start`` is zero where it has no entry."""
    seed = derive_seed(
        session.plan.config.root_seed, "attack", round=round, client_id=session.client_id
    )
    generator = numpy_generator(seed)
    return {
        name: _corrupted(attack, value, start.get(name), generator)
        for name, value in tensors.items()
    }


def _corrupted(
    attack: AttackConfig, value: Tensor, start: Tensor | None, generator: np.random.Generator
) -> Tensor:
    if not value.is_floating_point():
        return value
    if attack.kind == "nan":
        return torch.full_like(value, torch.nan)
    origin = torch.zeros_like(value, dtype=torch.float64) if start is None else start.double()
    moved = value.double() - origin
    if attack.kind == "random":
        noise = torch.from_numpy(generator.standard_normal(tuple(value.shape)))
        moved = noise * (moved.norm() * attack.factor / max(1, value.numel()) ** 0.5)
    else:
        moved = moved * (attack.factor if attack.kind == "scale" else -1.0)
    return (origin + moved).to(value.dtype)
