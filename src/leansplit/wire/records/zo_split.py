"""Messages of the methods with zeroth-order steps on both sides of the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leansplit.wire.records.base import Record, payload
from leansplit.wire.records.splitfed import SmashedDataReply


@dataclass(frozen=True, kw_only=True)
class ProbedSmashedDataReply(SmashedDataReply):
    """MU-SplitFed, ZO-SFL, HOSL and HO-SFL that probes ahead, client to server: smashed data at
    and around theta_c.
    """

    smashed_data: Tensor = payload("smashed_data", default_factory=lambda: torch.empty(0))
    """z, shape [B, ...]; empty where the server does not need it."""
    plus: Tensor = payload("smashed_data", alike=True)
    """z at theta_c + mu u_p for each direction, shape [P, B, ...]."""
    minus: Tensor = payload("smashed_data", alike=True, default_factory=lambda: torch.empty(0))
    """z at theta_c - mu u_p, shape [P, B, ...]; empty for the forward difference."""


@dataclass(frozen=True, kw_only=True)
class DifferencesRequest(Record):
    """MU-SplitFed and ZO-SFL, server to client: take a step from these scalars, then go on."""

    continues_round: ClassVar[bool] = True

    round: int
    local_step: int
    is_last: bool
    """True: answer with the weights; False: answer with the next step's smashed data."""
    scalars: Tensor = payload("scalars")
    """Loss differences [P], float32, not divided by mu."""
