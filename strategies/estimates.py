"""What strategies tell watchers of their gradient estimates; no method needs any of it.

A method with shared directions reports one estimate of its cohort, one with private directions an
estimate of each client. Reports are of a round's first local step: only there does the server know
where clients stand. Nothing is put together for a round that nobody watches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from leansplit.federated import FedZOConfig, HeronSFLConfig
from leansplit.noise import local_perturbation_seeds
from leansplit.zeroth_order import DifferentiableObjective, EstimateReport

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class EstimateObserver(Protocol):
    """An observer that also watches gradient estimates; nothing it does may change the run."""

    def wants_estimates(self, round: int) -> bool:
        """Say whether estimates of ``round`` are wanted; what is not is never put together."""
        ...

    def on_estimate(self, report: EstimateReport) -> None:
        """An estimate of the round is about to be applied."""


class EstimateReporting:
    """Mixed into every strategy: the one way to report an estimate."""

    observers: list[Any]

    def report_estimate(self, round: int, build: Callable[[], EstimateReport]) -> None:
        """Tell whoever watches what was estimated; to be called before the update is applied.

        Args:
            round: the current round.
            build: puts the report together; called only if someone wants it.
        """
        if watching := self._watching(round):
            report = build()
            for observer in watching:
                observer.on_estimate(report)

    def report_private_probes(
        self,
        round: int,
        client_ids: Iterable[int],
        weights: Mapping[str, Tensor],
        objective: DifferentiableObjective,
        config: FedZOConfig | HeronSFLConfig,
    ) -> None:
        """Report the estimates of clients that keep directions and scalars to themselves.

        Args:
            round: the current round.
            client_ids: the clients whose work counted.
            weights: what they were sent, and probed at first.
            objective: what they probed.
            config: their seeds derive from it.
        """
        for m in client_ids:
            build = partial(_private_probes, round, m, weights, objective, config)
            self.report_estimate(round, build)

    def as_watched(self, round: int, module: M) -> M:
        """Return ``module`` as it is now, to be differentiated after it has moved.

        That is a copy in a round that is watched; in others, where nobody looks, ``module``.
        """
        return copy.deepcopy(module) if self._watching(round) else module

    def _watching(self, round: int) -> list[EstimateObserver]:
        return [
            observer
            for observer in self.observers
            if isinstance(observer, EstimateObserver) and observer.wants_estimates(round)
        ]


def _private_probes(
    round: int,
    client_id: int,
    weights: Mapping[str, Tensor],
    objective: DifferentiableObjective,
    config: FedZOConfig | HeronSFLConfig,
) -> EstimateReport:
    seeds = local_perturbation_seeds(
        config.root_seed,
        config.zeroth_order.num_perturbations,
        round=round,
        client_id=client_id,
        local_step=0,
    )
    return EstimateReport.of_client(
        round, client_id, weights, seeds, None, objective, config.zeroth_order
    )
