"""What a zeroth-order estimator probes: a function of parameters that is only ever evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leansplit.parameters import ParameterDict

_SUM_CHUNK = 65536


class Objective(Protocol):
    """A scalar function F of the parameters, kept as the tensor that it reduces.

    The estimator needs F(plus) - F(minus). Subtracting two large sums loses the digits that
    matter, so objectives subtract elementwise first and reduce in float64 afterwards.
    """

    def evaluate(self, parameters: ParameterDict) -> Tensor:
        """Return the unreduced value at ``parameters``: one forward pass."""
        ...

    def difference(self, plus: Tensor, minus: Tensor) -> float:
        """Return F(plus) - F(minus) from two unreduced values."""
        ...


@dataclass(frozen=True)
class SumObjective:
    """F = the sum of the elements that ``function`` returns, such as per-sample losses."""

    function: Callable[[ParameterDict], Tensor]

    def evaluate(self, parameters: ParameterDict) -> Tensor:
        """Return ``function(parameters)``, any shape, evaluated in inference mode."""
        with torch.inference_mode():
            return self.function(parameters)

    def difference(self, plus: Tensor, minus: Tensor) -> float:
        """Return the float64 sum of ``plus - minus``."""
        return float((plus - minus).double().sum())


@dataclass(frozen=True)
class SurrogateObjective:
    """HO-SFL's client objective F(theta) = <lambda, f_c(x; theta)> (arXiv 2603.14773).

    Attributes:
        client_model: f_c; its parameters are replaced, never written.
        inputs: x, shape [B, ...].
        smashed_gradient: lambda = dl/dz at the cut, the shape of f_c(x).
    """

    client_model: nn.Module
    inputs: Tensor
    smashed_gradient: Tensor

    def evaluate(self, parameters: ParameterDict) -> Tensor:
        """Return f_c(x; parameters), shape [B, ...], in memory of its own."""
        smashed = forward_only(self.client_model, parameters, self.inputs)
        shared = smashed.untyped_storage()._cdata == self.inputs.untyped_storage()._cdata
        return smashed.clone() if shared else smashed

    def difference(self, plus: Tensor, minus: Tensor) -> float:
        """Return <lambda, plus - minus>: difference and product in float32, sum in float64.

        Overwrites ``plus`` where that is float32, so that a client never holds more than its
        inference needs.
        """
        with torch.inference_mode():
            return float64_sum(plus.float().sub_(minus).mul_(self.smashed_gradient))


@dataclass(frozen=True)
class LossObjective:
    """A client's own objective F(theta) = mean loss of one batch under the whole model.

    Attributes:
        model: the whole model; its parameters are replaced, never written.
        loss: (outputs, labels) -> mean loss, a scalar tensor.
        inputs: x, shape [B, ...].
        labels: y, shape [B, ...].
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    labels: Tensor

    def evaluate(self, parameters: ParameterDict) -> Tensor:
        """Return the mean loss at ``parameters``, a scalar tensor."""
        outputs = forward_only(self.model, parameters, self.inputs)
        with torch.inference_mode():
            return self.loss(outputs, self.labels)

    def difference(self, plus: Tensor, minus: Tensor) -> float:
        """Return F(plus) - F(minus) of two float32 losses, in float64."""
        return float(plus) - float(minus)


def float64_sum(values: Tensor) -> float:
    """Return the sum of ``values`` in float64, without a float64 copy of all of them."""
    chunks = torch.split(values.reshape(-1), _SUM_CHUNK)
    return sum((float(chunk.sum(dtype=torch.float64)) for chunk in chunks), start=0.0)


def forward_only(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Evaluate ``model`` at ``parameters`` in inference mode: no graph, no way to a gradient."""
    with torch.inference_mode():
        output = functional_call(model, dict(parameters), (inputs,))
    assert isinstance(output, Tensor)
    return output
