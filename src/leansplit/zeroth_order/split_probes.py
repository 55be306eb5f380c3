"""Probing a model that a cut divides: clients send perturbed smashed data, the server compares.

Forward difference:  plus_p = f_c(x; theta_c + mu u_p), compared with the anchor f_c(x; theta_c)
Central difference:  plus_p as above, compared with minus_p = f_c(x; theta_c - mu u_p)

Nothing here differentiates, on either side of the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leansplit.noise import torch_seeded
from leansplit.parameters import ParameterDict, ParameterSpec
from leansplit.zeroth_order.estimators import ZerothOrderConfig, perturbed
from leansplit.zeroth_order.objective import (
    float64_inner_product,
    forward_only,
    inner_product_in_parts,
)


@dataclass(frozen=True)
class ProbedSmashedData:
    """A client's smashed data at and around theta_c, for one batch.

    Attributes:
        anchor: f_c(x; theta_c), shape [B, ...]; shape [0] if nobody needs it.
        plus: shape [P, B, ...].
        minus: shape [P, B, ...]; shape [0] if the anchor stands in for all of them.
    """

    anchor: Tensor
    plus: Tensor
    minus: Tensor

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """What is compared for each direction: (plus_p, minus_p or the anchor)."""
        others = self.minus if len(self.minus) else [self.anchor] * len(self.plus)
        return list(zip(self.plus, others, strict=True))


def probe_smashed_data(
    client_model: nn.Module,
    spec: ParameterSpec,
    vector: Tensor,
    inputs: Tensor,
    seeds: Sequence[int],
    config: ZerothOrderConfig,
    *,
    with_anchor: bool,
    micro_batch: int = 0,
) -> ProbedSmashedData:
    """Run one batch through the client model at theta_c + mu u_p, - mu u_p and theta_c.

    Args:
        client_model: f_c, in the mode it is to be probed in; its parameters are not written.
        spec: layout of its trainable parameters.
        vector: theta_c, shape [d_c]; not written.
        inputs: x, shape [B, ...].
        seeds: one perturbation seed for each direction.
        config: estimator, mu and distribution.
        with_anchor: whether f_c(x; theta_c) is wanted with the central difference too.
        micro_batch: samples that are run forward at once; 0 = all.
    """

    def run(parameters: ParameterDict) -> Iterator[Tensor]:
        yield forward_only(client_model, parameters, inputs, micro_batch)

    return probe_smashed_data_each(run, spec, vector, seeds, config, with_anchor=with_anchor)[0]


def probe_smashed_data_each(
    run: Callable[[ParameterDict], Iterable[Tensor]],
    spec: ParameterSpec,
    vector: Tensor,
    seeds: Sequence[int],
    config: ZerothOrderConfig,
    *,
    with_anchor: bool,
) -> list[ProbedSmashedData]:
    """Run several batches at theta_c + mu u_p, - mu u_p and theta_c, every direction drawn once.

    Args:
        run: parameters -> smashed data [B, ...] of every batch, in the same order each time.
        spec: layout of the client model's trainable parameters.
        vector: theta_c, shape [d_c]; not written.
        seeds: one perturbation seed for each direction.
        config: estimator, mu and distribution.
        with_anchor: whether f_c(x; theta_c) is wanted with the central difference too.
    """

    def probes(scale: float) -> list[Tensor]:
        stacks: list[Tensor] = []
        for p, seed in enumerate(seeds):
            for at, z in enumerate(run(spec.views(perturbed(vector, scale, seed, config)))):
                if p == 0:
                    stacks.append(z.new_empty((len(seeds), *z.shape)))
                stacks[at][p] = z  # so that no more than one of them is held twice
        return stacks

    mu = config.perturbation_scale
    is_central = config.estimator == "central"
    needs_anchors = with_anchor or not is_central
    anchors = list(run(spec.views(vector))) if needs_anchors else None
    plus = probes(mu)
    none = [torch.empty(0)] * len(plus)
    minus = probes(-mu) if is_central else none
    return [ProbedSmashedData(*of_one) for of_one in zip(anchors or none, plus, minus, strict=True)]


def surrogate_differences(
    smashed_gradient: Tensor, probed: ProbedSmashedData, micro_batch: int = 0
) -> Tensor:
    """Return v_p = <lambda, plus_p> - <lambda, minus_p or the anchor>, float64 of shape [P].

    The bits are those of :func:`.probe` with a :class:`.SurrogateObjective` on the same kind of
    device: what is perturbed is summed in the parts that the client runs, the anchor at once.

    Args:
        smashed_gradient: lambda = dl/dz, shape [B, ...].
        probed: smashed data at and around theta_c.
        micro_batch: samples that the client runs forward at once; 0 = all.
    """

    def value(z: Tensor) -> float:
        return inner_product_in_parts(smashed_gradient, torch.split(z, micro_batch or len(z)))

    if len(probed.minus):
        below = [value(z) for z in probed.minus]
    else:
        below = [float64_inner_product(smashed_gradient, probed.anchor)] * len(probed.plus)
    differences = [value(z) - other for z, other in zip(probed.plus, below, strict=True)]
    return torch.tensor(differences, dtype=torch.float64)


@dataclass(frozen=True)
class ServerObjective:
    """F(theta_s, z) = the loss of smashed data z at the server, with one fixed dropout mask.

    The mask is drawn anew from ``dropout_seed`` at every call, so that two values differ by what
    was perturbed and by nothing else.

    Attributes:
        server_model: f_s, put in training mode by whoever builds this; parameters not written.
        loss: (outputs, labels) -> mean loss.
        labels: y, shape [B, ...].
        dropout_seed: of its random layers.
    """

    server_model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    labels: Tensor
    dropout_seed: int

    def __call__(self, parameters: ParameterDict, smashed_data: Tensor) -> Tensor:
        """Return the mean loss at ``parameters``, a scalar tensor without a graph."""
        with torch_seeded(self.dropout_seed), torch.inference_mode():
            return self.loss(forward_only(self.server_model, parameters, smashed_data), self.labels)
