"""What was estimated, told to whoever watches; and the true gradient, by backpropagation.

A strategy says what it estimated: where (the parameters before the update), from what (seeds and
scalars), and of what (an objective that can be differentiated, over the batches of clients). A
watcher that has those batches, which only a simulation or a test has, computes the true gradient
and compares. Scalars that clients keep to themselves it probes again. Nothing here is part of any
method: no client and no server step uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from leansplit.noise import second_moment_inverse
from leansplit.noise.torch_rng import torch_seeded
from leansplit.parameters import ParameterDict, ParameterSpec
from leansplit.zeroth_order.differentiable import DifferentiableObjective
from leansplit.zeroth_order.directions import draw_direction
from leansplit.zeroth_order.estimators import ZerothOrderConfig, probe
from leansplit.zeroth_order.objective import SumObjective
from leansplit.zeroth_order.quality import EstimateQuality, EstimateSum, quality_of

Batches = Callable[[int, int], tuple[Tensor, Tensor]]
"""(client id, local step) -> the (inputs, labels) that the client probed on."""


@dataclass(frozen=True)
class ProbedDirections:
    """Directions that were probed together.

    Attributes:
        seeds: one for each direction.
        scalars: un-normalised differences v_p, as :func:`leansplit.zeroth_order.probe` returns
            them, or their mean over the clients that share the directions; None if they never left
            the clients, so that whoever wants them probes again.
        weight: share of this part in the estimate.
    """

    seeds: Sequence[int]
    scalars: Sequence[float] | None
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

    @classmethod
    def of_client(
        cls,
        round: int,
        client_id: int,
        parameters: Mapping[str, Tensor],
        seeds: Sequence[int],
        scalars: Tensor | None,
        objective: DifferentiableObjective,
        config: ZerothOrderConfig,
        *,
        part: str = "client",
    ) -> EstimateReport:
        """Report the estimate that one client alone made, or a server for it, in its first step.

        Args:
            round: 1-based.
            client_id: whose batch it was.
            parameters: those that were probed; copied.
            seeds: one for each direction.
            scalars: v, shape [P]; None = to be probed again.
            objective: what was probed.
            config: how it was probed.
            part: whose parameters these are.
        """
        spec = ParameterSpec.of(parameters)
        values = None if scalars is None else scalars.tolist()
        return cls(
            round=round,
            part=part,
            spec=spec,
            vector=spec.flatten(parameters),
            config=config,
            probed=[ProbedDirections(seeds, values)],
            weights={client_id: 1.0},
            objective=objective,
        )

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

    def estimate(self, batches: Batches) -> tuple[Tensor, float]:
        """Rebuild (the estimate, float64 of shape [d]; its variance over the directions).

        The variance is that within each entry of ``probed``: differences between clients are not
        part of it.
        """
        size, device = self.spec.num_elements, self.vector.device
        estimate = torch.zeros(size, dtype=torch.float64, device=device)
        variance = 0.0
        factor = second_moment_inverse(self.config.direction, size)
        for part in self.probed:
            scalars = part.scalars
            if scalars is None:
                scalars = self._probed_again(part.seeds, batches)
            summed = EstimateSum(size, device)
            for seed, scalar in zip(part.seeds, scalars, strict=True):
                direction = draw_direction(seed, size, self.config.direction, device)
                summed.add_(factor * self.config.slope(scalar), direction)
            estimate += part.weight * summed.mean
            variance += part.weight**2 * summed.variance_of_mean
        return estimate, variance

    def quality(self, batches: Batches) -> EstimateQuality:
        """Compare the estimate with the true gradient, in float64."""
        estimate, variance = self.estimate(batches)
        return quality_of(
            estimate,
            self.true_gradient(batches),
            variance=variance,
            num_directions=sum(len(part.seeds) for part in self.probed),
        )

    def _probed_again(self, seeds: Sequence[int], batches: Batches) -> list[float]:
        """Return the mean differences that the clients of the report find, by forward passes."""
        total = torch.zeros(len(seeds), dtype=torch.float64)
        for client_id, weight in sorted(self.weights.items()):
            inputs, labels = batches(client_id, self.local_step)
            objective = SumObjective(
                partial(self._value_at, client_id=client_id, inputs=inputs, labels=labels)
            )
            with torch_seeded(0):
                total += weight * probe(objective, self.spec, self.vector, seeds, self.config)
        return total.tolist()

    def _value_at(
        self, parameters: ParameterDict, *, client_id: int, inputs: Tensor, labels: Tensor
    ) -> Tensor:
        return self.objective(client_id, parameters, inputs, labels)
