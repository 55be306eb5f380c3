"""Local training with two orders, and the replay of its zeroth-order half.

One local step from the weights (theta, phi) below and above the boundary (HO-FL):

    z = f_theta(x), without a graph
    loss, delta = dl/dz and the gradient of phi by backpropagation from the loss down to z
    v_j = <delta, f_{theta + mu u_j}(x) - z>          (``central``: both sides of theta)
    theta and phi each take one optimizer step, both from this anchor

Without layers above the boundary, v_j is the difference of the loss itself. The zeroth-order half
is a :class:`leansplit.federated.Replica`, whose updates are seeds and scalars: whoever holds the
weights that a client started from rebuilds where it ended, bit for bit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from leansplit.costs import ClientStep, held_weights
from leansplit.devices import on
from leansplit.federated import (
    HOFLConfig,
    Lifetime,
    Replica,
    Update,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.first_order import Loss, local_step, server_step
from leansplit.hybrid_order.segments import Segments
from leansplit.noise import perturbation_seeds
from leansplit.parameters import ParameterDict, load_parameters_
from leansplit.telling import leave_out, naming_logits
from leansplit.zeroth_order import (
    Objective,
    SumObjective,
    SurrogateObjective,
    forward_only,
    probe,
)

_ZEROTH = "zeroth."
_FIRST = "first."


class HybridTraining:
    """The local steps of one participation.

    The first-order half is trained in place; the zeroth-order half in memory of its own, until
    :meth:`finish`.

    Args:
        segments: the model at the client's boundary, holding the weights to start from.
        loss: (outputs, labels) -> mean loss.
        config: the optimizer of both halves, and how to probe.
        moments: what :meth:`moments` returned at the end of an earlier participation.
        replica_device: where the zeroth-order half takes its steps: where others do that must end
            in the same bits. Default: where the model is.
    """

    def __init__(
        self,
        segments: Segments,
        loss: Loss,
        config: HOFLConfig,
        moments: Mapping[str, Tensor] | None = None,
        replica_device: torch.device | None = None,
    ) -> None:
        self._segments = segments
        self._loss = loss
        self._zeroth_order = config.zeroth_order
        self._replica = None
        if segments.zeroth is not None:
            zeroth_moments = zeroth_part(moments or {})
            start = segments.zeroth_parameters
            if replica_device is not None:
                start = {name: value.to(replica_device) for name, value in start.items()}
            self._replica = _replica(start, config, zeroth_moments)
            leave_out(segments.zeroth_parameters.values())  # a vector stands for them
        first = segments.first
        self._optimizer = build_optimizer(
            config.client_optimizer, first.parameters() if first is not None else []
        )
        load_optimizer_state_(self._optimizer, _part(moments or {}, _FIRST))

    def step(
        self, inputs: Tensor, labels: Tensor, seeds: Sequence[int], *, dropout_seed: int
    ) -> tuple[float, Tensor]:
        """Take one step on one batch.

        The layers below the boundary run in evaluation mode, those above it in training mode.

        Args:
            inputs: shape [B, ...].
            labels: shape [B, ...].
            seeds: one perturbation seed for each direction; unused without a zeroth-order half.
            dropout_seed: seed of random layers above the boundary.

        Returns:
            (the batch's mean loss before the step, v as float32 [P], empty without a zeroth-order
            half).
        """
        zeroth, first = self._segments.zeroth, self._segments.first
        if self._replica is None or zeroth is None:
            assert first is not None
            value = local_step(
                first, self._loss, self._optimizer, inputs, labels, dropout_seed=dropout_seed
            )
            return value, torch.empty(0)
        zeroth.eval()
        theta = on(self._replica.vector, inputs.device)
        parameters = self._replica.spec.views(theta)
        objective: Objective
        if first is None:
            objective = SumObjective(
                lambda parameters: self._loss(
                    functional_call(zeroth, parameters, (inputs,)), labels
                )
            )
            value = anchor = objective.evaluate(parameters)
        else:
            # Inference tensors cannot start a graph; a copy can.
            smashed = forward_only(zeroth, parameters, inputs).clone()
            upper = server_step(
                first, self._loss, self._optimizer, [smashed], [labels], [1.0],
                dropout_seed=dropout_seed,
            )  # fmt: skip
            value = upper.losses[0]
            objective = SurrogateObjective(zeroth, inputs, upper.smashed_gradients[0])
            anchor = objective.value_of(smashed)
            del smashed  # probes hold no more than inference and lambda
        differences = probe(
            objective, self._replica.spec, theta, seeds, self._zeroth_order, anchor=anchor
        )
        del theta, parameters
        scalars = differences.float()  # as they cross the wire
        version = self._replica.version + 1
        self._replica.apply_(Update(version, tuple(seeds), tuple(scalars.tolist())))
        return value, scalars

    @property
    def vectors(self) -> list[Tensor]:
        """What is trained of the zeroth-order half."""
        return [] if self._replica is None else [self._replica.vector]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer | None]:
        """Those whose moments go from one local step to the next."""
        zeroth = None if self._replica is None else self._replica.kept_optimizer
        return [self._optimizer, zeroth]

    def finish(self) -> str:
        """Write the zeroth-order half into the model; return its checksum, moments included."""
        if self._replica is None or self._segments.zeroth is None:
            return ""
        load_parameters_(self._segments.zeroth, self._replica.parameters)
        return self._replica.checksum

    def moments(self) -> dict[str, Tensor]:
        """Return the moments of both halves as named tensors (copies)."""
        zeroth = self._replica.moments() if self._replica is not None else {}
        first = optimizer_state(self._optimizer)
        return {_ZEROTH + k: v for k, v in zeroth.items()} | {
            _FIRST + k: v for k, v in first.items()
        }


def replay(
    parameters: Mapping[str, Tensor],
    seeds: Tensor,
    scalars: Tensor,
    config: HOFLConfig,
    moments: Mapping[str, Tensor] | None = None,
) -> Replica:
    """Rebuild the zeroth-order half of a client after its local steps.

    Args:
        parameters: the weights below the boundary that the client started from; not written.
        seeds: shape [E, P].
        scalars: shape [E, P], float32, as the client sent them.
        config: the settings that the client trained with.
        moments: those that the client started from, as :meth:`Replica.moments` gave them.
    """
    replica = _replica(parameters, config, moments or {})
    for step, (s, v) in enumerate(zip(seeds.tolist(), scalars.tolist(), strict=True), start=1):
        replica.apply_(Update(step, tuple(s), tuple(v)))
    return replica


def zeroth_part(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the zeroth-order half of :meth:`HybridTraining.moments`, as ``replay`` takes it."""
    return _part(moments, _ZEROTH)


def measurable_step(
    segments: Segments, loss: Loss, config: HOFLConfig, inputs: Tensor, labels: Tensor
) -> ClientStep:
    """Return one local step of a client, to be run and measured; it trains ``segments``."""
    training = HybridTraining(segments, naming_logits(loss), config)
    seeds = perturbation_seeds(0, config.zeroth_order.num_perturbations, round=1)
    held = [held_weights(segments.first)] if segments.first is not None else []
    if segments.zeroth is not None:
        held.append(held_weights(segments.zeroth, but_trained=True))
    return ClientStep(
        run=lambda: training.step(inputs, labels, seeds, dropout_seed=0),
        weights=[*training.vectors, *itertools.chain(*held)],
        batch=(inputs, labels),
        optimizers=training.optimizers,
        has_moments=config.client_optimizer.has_moments(config.local_steps),
    )


def _replica(
    parameters: ParameterDict | Mapping[str, Tensor],
    config: HOFLConfig,
    moments: Mapping[str, Tensor],
) -> Replica:
    # Within a participation moments carry over from step to step, which are its rounds here.
    lifetime: Lifetime = "run" if config.client_optimizer.outlives_batch else "batch"
    optimizer = dataclasses.replace(config.client_optimizer, lifetime=lifetime)
    return Replica(parameters, optimizer, config.zeroth_order, optimizer_tensors=moments)


def _part(moments: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
