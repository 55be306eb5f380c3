"""What was estimated, told to whoever watches; and the true gradient, by backpropagation.

A strategy says what it estimated: where (the parameters before the update), from what (seeds and
scalars), and of what (an objective that can be differentiated, over the batches of clients). A
watcher that has those batches, which only a simulation or a test has, computes the true gradient
and compares. Nothing here is part of any method: no client and no server step uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leansplit.noise import second_moment_inverse
from leansplit.noise.torch_rng import torch_seeded
from leansplit.parameters import ParameterDict, ParameterSpec
from leansplit.zeroth_order.directions import draw_direction
from leansplit.zeroth_order.estimators import ZerothOrderConfig
from leansplit.zeroth_order.quality import EstimateQuality, EstimateSum, quality_of

DifferentiableObjective = Callable[[int, ParameterDict, Tensor, Tensor], Tensor]
"""(client id, parameters, inputs, labels) -> that client's objective, a scalar with a graph. It
reads the modules that it runs and leaves them as they were."""

Batches = Callable[[int, int], tuple[Tensor, Tensor]]
"""(client id, local step) -> the (inputs, labels) that the client probed on."""


@dataclass(frozen=True)
class ProbedDirections:
    """Directions that were probed together.

    Attributes:
        seeds: one for each direction.
        scalars: un-normalised differences v_p, as :func:`leansplit.zeroth_order.probe` returns
            them, or their mean over the clients that share the directions.
        weight: share of this part in the estimate.
    """

    seeds: Sequence[int]
    scalars: Sequence[float]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EstimateReport:
    """One gradient estimate of one round.

    Attributes:
        round: 1-based.
        local_step: 0-based, of the clients' batches.
        part: whose parameters these are: ``client``, or ``server`` where the server estimates too.
        spec: layout of the parameters.
        vector: the parameters that were probed, shape [d]; a copy, from before the update.
        config: how they were probed.
        probed: what the estimate sums: one entry for directions that all clients share, one for
            each client that has its own.
        weights: client id -> its share of the objective, of all whose scalars are in it.
        objective: the objective of one client, without its weight.
    """

    round: int
    local_step: int = 0
    part: str = "client"
    spec: ParameterSpec
    vector: Tensor
    config: ZerothOrderConfig
    probed: Sequence[ProbedDirections]
    weights: Mapping[int, float]
    objective: DifferentiableObjective

    def true_gradient(self, batches: Batches) -> Tensor:
        """Return sum_m w_m dF_m/dtheta at the reported parameters, float64 of shape [d].

        Each client is differentiated in float32, as a first-order client would; clients are summed
        in float64.
        """
        total = torch.zeros_like(self.vector, dtype=torch.float64)
        for client_id, weight in sorted(self.weights.items()):
            # Whatever mode the caller is in; and the global generator stays where it is.
            with torch_seeded(0), torch.inference_mode(False), torch.enable_grad():
                inputs, labels = batches(client_id, self.local_step)
                theta = self.vector.detach().clone().requires_grad_(True)
                value = self.objective(client_id, self.spec.views(theta), inputs, labels)
                [gradient] = torch.autograd.grad(value, theta, allow_unused=True)
            if gradient is not None:
                total += weight * gradient.double()
        return total

    def quality(self, batches: Batches) -> EstimateQuality:
        """Rebuild the estimate in float64 and compare it with the true gradient.

        The variance is that over directions, within each entry of ``probed``: differences between
        clients are not part of it.
        """
        size, device = self.spec.num_elements, self.vector.device
        estimate = torch.zeros(size, dtype=torch.float64, device=device)
        variance = 0.0
        factor = second_moment_inverse(self.config.direction, size)
        for part in self.probed:
            summed = EstimateSum(size, device)
            for seed, scalar in zip(part.seeds, part.scalars, strict=True):
                direction = draw_direction(seed, size, self.config.direction, device)
                summed.add_(factor * self.config.slope(scalar), direction)
            estimate += part.weight * summed.mean
            variance += part.weight**2 * summed.variance_of_mean
        return quality_of(
            estimate,
            self.true_gradient(batches),
            variance=variance,
            num_directions=sum(len(part.seeds) for part in self.probed),
        )


def surrogate_objective(
    client_model: nn.Module, smashed_gradients: Mapping[int, Tensor]
) -> DifferentiableObjective:
    """Return F_m(theta) = <lambda_m, f_c(x_m; theta)> of HO-SFL's clients, in evaluation mode.

    Its gradient is the one that a first-order client gets by back-propagating lambda_m.
    """

    def value(client_id: int, parameters: ParameterDict, inputs: Tensor, _: Tensor) -> Tensor:
        with evaluation_mode(client_model):
            smashed: Tensor = functional_call(client_model, parameters, (inputs,))
        return (smashed * smashed_gradients[client_id]).sum()

    return value


def loss_objective(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]
) -> DifferentiableObjective:
    """Return F_m(theta) = loss(f(x_m; theta), y_m), in evaluation mode.

    ``parameters`` may be some of the model's; the others stay at what the model holds. For a whole
    model, a client model with its auxiliary head, or a client model seen through the server's.
    """

    def value(_: int, parameters: ParameterDict, inputs: Tensor, labels: Tensor) -> Tensor:
        with evaluation_mode(model):
            outputs: Tensor = functional_call(model, parameters, (inputs,))
        return loss(outputs, labels)

    return value


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode inside the block; every module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
