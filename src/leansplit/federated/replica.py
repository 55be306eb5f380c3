"""A client model's replica: the same bits wherever the same updates were applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from leansplit.allocation import allocated_as
from leansplit.errors import RunFailedError
from leansplit.federated.optimizers import (
    OptimizerConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.federated.trained_vector import TrainedVector
from leansplit.federated.update_log import Update
from leansplit.parameters import ParameterDict, ParameterSpec, checksum
from leansplit.zeroth_order import (
    ZerothOrderConfig,
    begin_sum_,
    coefficients,
    estimate,
    parts_of_all,
)

PARAMETERS_PREFIX = "parameters."
OPTIMIZER_PREFIX = "optimizer."


class Replica:
    """(version, trainable parameters, optimizer moments) of a client model.

    Every HO-SFL client, and the server's mirror, is one of these. An update is P seeds and P
    mean scalars; applying it is one optimizer step on the estimate they rebuild
    (arXiv 2603.14773, step 7). Updates of several local steps (DeComFL) hold P of each for every
    step. Replicas that applied the same updates are equal bit for bit.

    Attributes:
        version: the round of the last update applied; 0 = initial parameters.
        vector: the parameters in canonical order, shape [d].
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        optimizer: OptimizerConfig,
        zeroth_order: ZerothOrderConfig,
        *,
        version: int = 0,
        optimizer_tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.spec = ParameterSpec.of(parameters)
        self.version = version
        self.vector = self.spec.flatten(parameters)
        self._zeroth_order = zeroth_order
        self._config = optimizer
        self._optimizer = self._fresh_optimizer()
        if optimizer_tensors:
            load_optimizer_state_(self._optimizer, optimizer_tensors)
        self._checksum: str | None = None

    def _fresh_optimizer(self) -> torch.optim.Optimizer | None:
        return build_optimizer(self._config, [self.vector] if self.spec.num_elements else [])

    @property
    def kept_optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, if its moments outlive an update."""
        return self._optimizer if self._config.outlives_round else None

    @property
    def parameters(self) -> ParameterDict:
        """The parameters by name; views of the replica's memory, valid until the next update."""
        return self.spec.views(self.vector)

    def apply_(self, update: Update) -> None:
        """Take the optimizer steps that ``update`` stands for: one for every P of its seeds.

        Raises:
            RunFailedError: if the update is not newer than this replica, or holds a part of a step.
        """
        if update.round <= self.version:
            raise RunFailedError(
                f"update of round {update.round} offered to a replica at version {self.version}"
            )
        for seeds, scalars in self._steps(update):
            self._step_(seeds, scalars)
        if not self._config.outlives_round:  # what no update will use is neither held nor sent
            self._optimizer = self._fresh_optimizer()
        self.version = update.round
        self._checksum = None

    def _steps(self, update: Update) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
        """Yield (seeds, scalars) of each step of ``update``."""
        per_step = self._zeroth_order.num_perturbations
        if len(update.seeds) % per_step:
            raise RunFailedError(
                f"update of round {update.round} has {len(update.seeds)} seeds, which are no whole "
                f"number of steps of {per_step}"
            )
        for first in range(0, len(update.seeds), per_step):
            step = slice(first, first + per_step)
            yield update.seeds[step], update.scalars[step]

    def _step_(self, seeds: Sequence[int], scalars: Sequence[float]) -> None:
        gradient = estimate(
            self.spec,
            seeds,
            torch.tensor(scalars, dtype=torch.float64),
            self._zeroth_order,
            device=self.vector.device,
        )
        if self._optimizer is not None:
            self.vector.grad = gradient
            self._optimizer.step()
            self.vector.grad = None

    def catch_up_(self, updates: Iterable[Update]) -> None:
        """Replay the updates that are newer than this replica, in order.

        Directions that recur, which those of a seed pool do, are drawn once: optimizers work
        element by element, so a part of the vector may take all its steps before the next part
        takes its first. The bits are those of one update after the other.
        """
        missed = [update for update in updates if update.round > self.version]
        drawn = list(dict.fromkeys(seed for update in missed for seed in update.seeds))
        parts = None
        if len(drawn) < sum(len(update.seeds) for update in missed):
            size, direction = self.spec.num_elements, self._zeroth_order.direction
            parts = parts_of_all(drawn, size, direction, self.vector.device)
        if parts is None:
            for update in missed:
                self.apply_(update)
        else:
            self._replay_(missed, parts)

    def _replay_(
        self, missed: Sequence[Update], parts: Iterable[tuple[slice, Mapping[int, Tensor]]]
    ) -> None:
        """Take all steps of ``missed``, one part of the vector after the other."""
        rounds = [[*map(self._terms, self._steps(update))] for update in missed]
        before, after = self.moments(), dict[str, list[Tensor]]()
        for part, directions in parts:
            moments = {
                name: value[part] if value.dim() else value for name, value in before.items()
            }
            piece = TrainedVector({"part": self.vector[part]}, self._config, moments)
            gradient, product = torch.empty_like(piece.vector), torch.empty_like(piece.vector)
            for steps in rounds:
                for (first, first_factor), *others in steps:
                    begin_sum_(gradient, first_factor, directions[first])
                    for seed, factor in others:
                        gradient.add_(torch.mul(directions[seed], factor, out=product))
                    piece.step_(gradient)
                if not self._config.outlives_round:
                    piece.forget_()
            self.vector[part] = piece.vector
            for name, value in piece.moments.items():
                after.setdefault(name, []).append(value)
        whole = {name: torch.cat(v) if v[0].dim() else v[0] for name, v in after.items()}
        load_optimizer_state_(self._optimizer, whole)
        self.version = missed[-1].round
        self._checksum = None

    def _terms(self, step: tuple[Sequence[int], Sequence[float]]) -> list[tuple[int, float]]:
        """Return (seed, what its direction is multiplied by) of a step's estimate."""
        seeds, scalars = step
        factors = coefficients(scalars, self.spec.num_elements, self._zeroth_order)
        return list(zip(seeds, factors, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Return parameters and moments as named tensors (copies), to store or to send."""
        with allocated_as(None):
            state = {f"{PARAMETERS_PREFIX}{k}": v.clone() for k, v in self.parameters.items()}
        return state | {f"{OPTIMIZER_PREFIX}{k}": v for k, v in self.moments().items()}

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's moments alone (copies), as ``optimizer_tensors`` takes them."""
        return optimizer_state(self._optimizer)

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of :meth:`state` after any update."""
        size = self.spec.num_elements
        return self.vector.element_size() * size + self._config.kept_bytes(size)

    def fork(self) -> TrainedVector:
        """Return a copy at which the next round's local steps can be taken and then forgotten.

        It starts with the moments that this replica would start the round's update with.
        """
        kept = optimizer_state(self._optimizer) if self._config.outlives_round else None
        return TrainedVector(self.parameters, self._config, kept)

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        optimizer: OptimizerConfig,
        zeroth_order: ZerothOrderConfig,
        *,
        version: int,
    ) -> Replica:
        """Rebuild a replica from :meth:`state`."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        return cls(
            part(PARAMETERS_PREFIX),
            optimizer,
            zeroth_order,
            version=version,
            optimizer_tensors=part(OPTIMIZER_PREFIX),
        )

    @property
    def checksum(self) -> str:
        """16 hex digits over parameters and moments; equal checksums mean equal replicas."""
        if self._checksum is None:
            self._checksum = checksum(self.state())
        return self._checksum
