"""Parameters as one vector with an optimizer of its own, moved by zeroth-order estimates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from leansplit.federated.optimizers import (
    OptimizerConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.parameters import ParameterDict, ParameterSpec


class TrainedVector:
    """A copy of a parameter set in canonical order, and the moments of its optimizer.

    Args:
        parameters: where to start; copied.
        optimizer: how a step is taken; ``lifetime`` matters here only as ``batch``, the other
            lifetimes are up to whoever keeps :attr:`moments`.
        moments: from :attr:`moments`; none = a fresh optimizer.

    Attributes:
        spec: the layout.
        vector: shape [d].
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: OptimizerConfig,
        moments: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.spec = ParameterSpec.of(parameters)
        self.vector = self.spec.flatten(parameters)
        self._optimizer = build_optimizer(
            optimizer, [self.vector] if self.spec.num_elements else []
        )
        is_plain = optimizer.name == "sgd" and not (optimizer.momentum or optimizer.weight_decay)
        self._plain_rate = optimizer.lr if is_plain else None
        if moments:
            load_optimizer_state_(self._optimizer, moments)

    @property
    def parameters(self) -> ParameterDict:
        """The parameters by name; views, valid until the next step."""
        return self.spec.views(self.vector)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """What takes the steps; None if there is nothing to train."""
        return self._optimizer

    @property
    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state as named tensors (copies); empty if it has none."""
        return optimizer_state(self._optimizer)

    def forget_(self) -> None:
        """Drop all moments, so that the next step is a first one."""
        if self._optimizer is not None:
            self._optimizer.state.clear()

    def step_(self, gradient: Tensor) -> None:
        """Take one optimizer step along ``gradient``, shape [d]."""
        if self._optimizer is None:
            return
        if self._plain_rate is not None:  # what torch's SGD does, without what it does around it
            self.vector.add_(gradient, alpha=-self._plain_rate)
            return
        self.vector.grad = gradient
        self._optimizer.step()
        self.vector.grad = None
