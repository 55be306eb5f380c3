"""Answers whose forward passes wait, so that those of several clients can be run at once.

A handler that only runs a model forward returns what is to be run and what becomes of the
outputs. Alone or together the same passes are run, and the same answers come of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from leansplit.devices import on
from leansplit.federated import Replica
from leansplit.parameters import ParameterDict
from leansplit.wire import Record
from leansplit.zeroth_order import (
    JointPasses,
    ProbedSmashedData,
    SurrogateObjective,
    ZerothOrderConfig,
    evaluate_jointly,
    forward_only,
    probe,
    probe_each,
    probe_smashed_data_each,
)


class Deferred(Protocol):
    """An answer that is still to be computed."""

    def company(self, passes: JointPasses) -> Hashable:
        """Answers of the same company can be computed together; None: only alone."""
        ...

    def then(self, change: Callable[[Record], Record]) -> Deferred:
        """Return what computes the same answer and then changes it."""
        ...

    def alone(self) -> Record:
        """Return the answer."""
        ...

    def together(self, others: Sequence[Any], passes: JointPasses) -> Iterator[Record]:
        """Yield the answers of ``others``, which are of this one's company and include it."""
        ...


@dataclass(frozen=True)
class DeferredForward:
    """z = f_c(x; theta), then what is done with it.

    Attributes:
        model: f_c, in the mode it is to be run in.
        replica: theta.
        inputs: x, shape [B, ...].
        finish: z -> the answer.
        micro_batch: samples that are run at once; 0 = all.
    """

    model: nn.Module
    replica: Replica
    inputs: Tensor
    finish: Callable[[Tensor], Record]
    micro_batch: int = 0

    def company(self, passes: JointPasses) -> Hashable:
        """Whoever runs such a batch on the same parameters."""
        return None if self.micro_batch else _where(self.replica, self.inputs, passes)

    def then(self, change: Callable[[Record], Record]) -> DeferredForward:
        """Return what computes the same answer and then changes it."""
        return replace(self, finish=lambda outputs: change(self.finish(outputs)))

    def alone(self) -> Record:
        """Return the answer."""
        return self.finish(self._pass(self._parameters(), self.inputs))

    def together(self, others: Sequence[DeferredForward], passes: JointPasses) -> Iterator[Record]:
        """Yield the answers of all of ``others``."""
        outputs = passes.run(
            partial(self._pass, self._parameters()), [other.inputs for other in others]
        )
        for other, smashed in zip(others, outputs, strict=True):
            yield other.finish(smashed)

    def _parameters(self) -> ParameterDict:
        return self.replica.spec.views(on(self.replica.vector, self.inputs.device))

    def _pass(self, parameters: ParameterDict, inputs: Tensor) -> Tensor:
        return forward_only(self.model, parameters, inputs, self.micro_batch)


@dataclass(frozen=True)
class DeferredProbe:
    """P differences of an objective around theta, then what is done with them.

    Attributes:
        objective: F.
        replica: theta.
        seeds: P perturbation seeds.
        config: estimator, mu and distribution.
        anchor: F at theta, if it is there already.
        finish: differences, float64 [P] -> the answer.
    """

    objective: SurrogateObjective
    replica: Replica
    seeds: tuple[int, ...]
    config: ZerothOrderConfig
    anchor: float
    finish: Callable[[Tensor], Record]

    def company(self, passes: JointPasses) -> Hashable:
        """Whoever probes the same directions around the same parameters on such a batch."""
        if self.objective.micro_batch:
            return None
        return (self.seeds, *_where(self.replica, self.objective.inputs, passes))

    def then(self, change: Callable[[Record], Record]) -> DeferredProbe:
        """Return what computes the same answer and then changes it."""
        return replace(self, finish=lambda outputs: change(self.finish(outputs)))

    def alone(self) -> Record:
        """Return the answer."""
        theta = on(self.replica.vector, self.objective.inputs.device)
        differences = probe(
            self.objective, self.replica.spec, theta, self.seeds, self.config, anchor=self.anchor
        )
        return self.finish(differences)

    def together(self, others: Sequence[DeferredProbe], passes: JointPasses) -> Iterator[Record]:
        """Yield the answers of all of ``others``."""
        objectives = [other.objective for other in others]
        differences = probe_each(
            evaluate_jointly(passes, self.objective.client_model, objectives),
            self.replica.spec,
            on(self.replica.vector, self.objective.inputs.device),
            self.seeds,
            self.config,
            anchors=[other.anchor for other in others],
        )
        for other, v in zip(others, differences, strict=True):
            yield other.finish(v)


@dataclass(frozen=True)
class DeferredProbedForward:
    """z at theta and around it, then what is done with them.

    Attributes:
        model: f_c, in the mode it is to be run in.
        replica: theta.
        inputs: x, shape [B, ...].
        seeds: P perturbation seeds.
        config: estimator, mu and distribution.
        finish: smashed data at theta and around it -> the answer.
        micro_batch: samples that are run at once; 0 = all.
    """

    model: nn.Module
    replica: Replica
    inputs: Tensor
    seeds: tuple[int, ...]
    config: ZerothOrderConfig
    finish: Callable[[ProbedSmashedData], Record]
    micro_batch: int = 0

    def company(self, passes: JointPasses) -> Hashable:
        """Whoever probes the same directions around the same parameters on such a batch."""
        if self.micro_batch:
            return None
        return (self.seeds, *_where(self.replica, self.inputs, passes))

    def then(self, change: Callable[[Record], Record]) -> DeferredProbedForward:
        """Return what computes the same answer and then changes it."""
        return replace(self, finish=lambda outputs: change(self.finish(outputs)))

    def alone(self) -> Record:
        """Return the answer."""

        def run(parameters: ParameterDict) -> Iterator[Tensor]:
            yield forward_only(self.model, parameters, self.inputs, self.micro_batch)

        return self.finish(self._probed(run)[0])

    def together(
        self, others: Sequence[DeferredProbedForward], passes: JointPasses
    ) -> Iterator[Record]:
        """Yield the answers of all of ``others``."""
        batches = [other.inputs for other in others]

        def run(parameters: ParameterDict) -> Iterator[Tensor]:
            return passes.run(lambda x: forward_only(self.model, parameters, x), batches)

        for other, probed in zip(others, self._probed(run), strict=True):
            yield other.finish(probed)

    def _probed(self, run: Callable[[ParameterDict], Iterable[Tensor]]) -> list[ProbedSmashedData]:
        return probe_smashed_data_each(
            run,
            self.replica.spec,
            on(self.replica.vector, self.inputs.device),
            self.seeds,
            self.config,
            with_anchor=True,  # the server trains on it
        )


def then(answer: Record | Deferred, change: Callable[[Record], Record]) -> Record | Deferred:
    """Return an answer with something done to it, now or when it has been computed."""
    if isinstance(answer, Record):
        return change(answer)
    return answer.then(change)


def _where(replica: Replica, inputs: Tensor, passes: JointPasses) -> tuple[Hashable, ...]:
    return replica.checksum, passes.alike(inputs)
