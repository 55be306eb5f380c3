"""What a zeroth-order estimator probes: a function of parameters that is only ever evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leansplit.micro_batches import run_in_parts
from leansplit.parameters import ParameterDict

_CHUNK = 65536  # elements that are held in float64 at a time


class Objective(Protocol):
    """A scalar function F of the parameters, in float64.

    The estimator needs F(plus) - F(minus), a millionth of either perhaps, so values are summed in
    float64 from float32 terms: nothing of their difference is lost, and no terms have to be kept.
    """

    def evaluate(self, parameters: ParameterDict) -> float:
        """Return F at ``parameters``: one forward pass."""
        ...


@dataclass(frozen=True)
class SumObjective:
    """F = the sum of the elements that ``function`` returns, such as per-sample losses."""

    function: Callable[[ParameterDict], Tensor]

    def evaluate(self, parameters: ParameterDict) -> float:
        """Return the float64 sum of ``function(parameters)``, evaluated in inference mode."""
        with torch.inference_mode():
            return float64_sum(self.function(parameters))


@dataclass(frozen=True)
class SurrogateObjective:
    """HO-SFL's client objective F(theta) = <lambda, f_c(x; theta)> (arXiv 2603.14773).

    Attributes:
        client_model: f_c; its parameters are replaced, never written.
        inputs: x, shape [B, ...].
        smashed_gradient: lambda = dl/dz at the cut, the shape of f_c(x).
        micro_batch: samples that are run forward at once; 0 = all.
    """

    client_model: nn.Module
    inputs: Tensor
    smashed_gradient: Tensor
    micro_batch: int = 0

    def evaluate(self, parameters: ParameterDict) -> float:
        """Return <lambda, f_c(x; parameters)>."""
        batches = torch.split(self.inputs, self.micro_batch or len(self.inputs))
        return inner_product_in_parts(
            self.smashed_gradient,
            (forward_only(self.client_model, parameters, x) for x in batches),
        )

    def value_of(self, smashed: Tensor) -> float:
        """Return <lambda, smashed>: F, of smashed data that are there already."""
        return float64_inner_product(self.smashed_gradient, smashed)


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

    def evaluate(self, parameters: ParameterDict) -> float:
        """Return the mean loss at ``parameters``."""
        return self.value_of(forward_only(self.model, parameters, self.inputs))

    def value_of(self, outputs: Tensor) -> float:
        """Return F, of outputs that are there already."""
        with torch.inference_mode():
            return float(self.loss(outputs, self.labels))


def float64_sum(values: Tensor) -> float:
    """Return the sum of ``values`` in float64, without a float64 copy of all of them."""
    with torch.inference_mode():
        total = torch.zeros((), dtype=torch.float64, device=values.device)
        for chunk in torch.split(values.reshape(-1), _CHUNK):
            total += chunk.sum(dtype=torch.float64)
        return float(total)


def float64_inner_product(a: Tensor, b: Tensor) -> float:
    """Return <a, b> of two float32 or narrower tensors of one shape, in float64.

    Products are exact, so only the sum rounds: the difference of two inner products keeps every
    digit that the difference of the tensors has. No float64 copy of all of them is made.
    """
    with torch.inference_mode():
        left, right = a.reshape(-1), b.reshape(-1)
        if len(left) <= _CHUNK:
            return float((left.double() * right).sum())
        total = torch.zeros((), dtype=torch.float64, device=b.device)
        for x, y in zip(torch.split(left, _CHUNK), torch.split(right, _CHUNK), strict=True):
            total += (x.double() * y).sum()
        return float(total)


def inner_product_in_parts(a: Tensor, parts: Iterable[Tensor]) -> float:
    """Return <a, b> for b that comes in parts of its first axis, summed part after part."""
    total, first = 0.0, 0
    for part in parts:
        last = first + len(part)
        total += float64_inner_product(a[first:last], part)
        first = last
        del part  # before the next one is made
    return total


def forward_only(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor, micro_batch: int = 0
) -> Tensor:
    """Evaluate ``model`` at ``parameters`` in inference mode: no graph, no way to a gradient.

    ``micro_batch`` samples are run at once; 0 = all.
    """

    def run(part: Tensor) -> Tensor:
        output = functional_call(model, dict(parameters), (part,))
        assert isinstance(output, Tensor)
        return output

    with torch.inference_mode():
        return run_in_parts(run, inputs, micro_batch)
