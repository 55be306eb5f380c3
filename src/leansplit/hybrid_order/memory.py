"""Boundaries by memory: as much backpropagation as a device can hold."""

from __future__ import annotations

import copy
import dataclasses

from torch import Tensor

from leansplit.costs import measure_step
from leansplit.errors import UserError
from leansplit.federated import HOFLConfig
from leansplit.first_order import Loss
from leansplit.hybrid_order.segments import ALL, NONE, Segments, segments_at
from leansplit.hybrid_order.training import measurable_step
from leansplit.models import SplitModel, cut_layers
from leansplit.zeroth_order import unshared_directions

_MB = 1e6


def fit_boundaries(
    config: HOFLConfig, model: SplitModel, loss: Loss, inputs: Tensor, labels: Tensor
) -> HOFLConfig:
    """Turn ``memory_budgets_mb`` into ``boundaries``, one for each budget.

    Each budget gets the candidate with the smallest zeroth-order segment whose local step, measured
    on a copy of the model and this batch, fits. What a step holds depends on shapes alone, so
    the choice is the same in every run. Candidates are ``config.boundaries``, or all that the
    model allows, ``none`` and ``all`` included.

    Args:
        config: returned as it is if it has no budgets.
        model: the model that clients will train; not changed.
        loss: (outputs, labels) -> mean loss.
        inputs: one batch of the size that clients train on, shape [B, ...].
        labels: shape [B, ...].

    Raises:
        UserError: if a budget is too small for every candidate, naming the least that is needed.
    """
    if not config.memory_budgets_mb:
        return config
    trial = copy.deepcopy(model)
    names = config.boundaries or (NONE, *cut_layers(trial.full_model), ALL)
    candidates = {name: segments_at(trial, name) for name in names}
    by_size = sorted(candidates, key=lambda name: candidates[name].num_zeroth_elements)
    peaks: dict[str, int] = {}

    def peak_bytes(name: str) -> int:
        if name not in peaks:
            peaks[name] = _peak_bytes(candidates[name], loss, config, inputs, labels)
        return peaks[name]

    chosen = []
    for budget in config.memory_budgets_mb:
        fitting = (name for name in by_size if peak_bytes(name) <= budget * _MB)
        name = next(fitting, None)
        if name is None:
            least = min(by_size, key=peak_bytes)
            raise UserError(
                f"no boundary fits in {budget:g} MB; the least that a client needs is "
                f"{peaks[least] / _MB:.3f} MB, at boundary {least!r}"
            )
        chosen.append(name)
    return dataclasses.replace(config, boundaries=tuple(chosen), memory_budgets_mb=())


def _peak_bytes(
    segments: Segments, loss: Loss, config: HOFLConfig, inputs: Tensor, labels: Tensor
) -> int:
    step = measurable_step(segments, loss, config, inputs, labels)
    with unshared_directions():  # a device serves one client and keeps no drawn directions
        return measure_step(step).peak_memory_bytes
