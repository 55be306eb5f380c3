"""What a client with an auxiliary head probes: its own loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leansplit.parameters import ParameterDict


@dataclass(frozen=True)
class LocalLossObjective:
    """HERON-SFL's F(theta_l) = l(a(f_c(x; theta_c); theta_a), y) (arXiv 2601.09076).

    The loss is taken in float64 from the model's float32 outputs: two losses that differ by a
    millionth of their size would lose their difference in float32.

    Attributes:
        model: maps inputs to (z, outputs), such as :class:`leansplit.models.LocalModel`; its
            parameters are replaced, never written.
        loss: (outputs, labels) -> mean loss; given float64 outputs.
        inputs: x, shape [B, ...].
        labels: y, shape [B, ...].
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    labels: Tensor

    def evaluate(self, parameters: ParameterDict) -> float:
        """Return the loss at ``parameters``."""
        return self.evaluate_with_smashed_data(parameters)[1]

    def evaluate_with_smashed_data(self, parameters: ParameterDict) -> tuple[Tensor, float]:
        """Return (z, loss) of one pass, so that an upload needs no pass of its own."""
        with torch.inference_mode():
            smashed, outputs = functional_call(self.model, dict(parameters), (self.inputs,))
            return smashed, float(self.loss(outputs.double(), self.labels))
