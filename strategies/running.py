"""How a strategy runs: set-up, rounds, evaluation when it is due, a clean end.

Everything here is the same for every method, so that strategy files hold nothing but the method.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from leansplit.errors import UserError
from leansplit.federated import AggregatedConfig, MethodConfig, require_cohort
from leansplit.models import SplitModel
from leansplit.parameters import ParameterDict, checksum, fixed_state, trainable_parameters
from leansplit.strategies.deployment import Deployment
from leansplit.strategies.estimates import EstimateReporting
from leansplit.strategies.failures import Failure, Quorum, QuorumLostError
from leansplit.strategies.federation import Federation
from leansplit.strategies.observed_grid import ObservedGrid
from leansplit.strategies.resuming import Continued, Resumable, RoundEndObserver, RunState
from leansplit.strategies.roster import connected_nodes
from leansplit.strategies.samples import ExpectedSamples
from leansplit.wire import ClientPlan, Ledger, header_limit
from leansplit.zeroth_order import JointPassChoice

log = logging.getLogger("leansplit")

_MOST_OTHERS = 1024  # tensors of an answer that are not of the model's parameters
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class RoundReport:
    """What one finished round did.

    Attributes:
        round: 1-based.
        samples_seen: samples that the method processed up to and including this round.
        train_loss: sample-weighted mean training loss of the round; None if unknown.
        num_replied: clients whose work counted.
        failures: client id -> reason, of the clients that were dropped in this round.
    """

    round: int
    samples_seen: int
    train_loss: float | None
    num_replied: int
    failures: dict[int, Failure]


class Observer(Protocol):
    """Watches a run from outside; :meth:`on_round` may stop it by returning False."""

    def on_set_up(self, federation: Federation) -> None:
        """All clients are known."""

    def on_round(self, report: RoundReport) -> bool:
        """A round has ended; return False to end the run here."""
        ...


class StopRunning(Exception):
    """An observer asked for the end of the run."""


class RunningStrategy(EstimateReporting, Resumable, Strategy):
    """Mixed into every strategy: ``start`` with set-up, observers and scheduled evaluation.

    Attributes:
        ledger: every byte that crossed.
        events: counts of what went wrong and was mended, such as ``dropped_clients``.
        repeated_uploads: kind -> client id -> answers that it had to give once more in a step.
        last_counted_round: the last that did not come to nothing; 0 = none yet.
        evaluate_every: rounds between evaluations (the last round is always evaluated).
        expected: what is known of the clients' samples; default: what the model tells.
    """

    method: str
    is_whole_model: bool = False
    """Whether clients train the whole model and not only the layers below the cut."""
    model: SplitModel
    config: MethodConfig

    def __init__(
        self,
        *args: Any,
        deployment: Deployment | None = None,
        evaluate_every: int = 1,
        observers: Iterable[Observer] = (),
        expected: ExpectedSamples | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if evaluate_every < 1:
            raise UserError(f"evaluate_every must be at least 1, got {evaluate_every}")
        self.deployment = deployment or Deployment()
        self.evaluate_every = evaluate_every
        self.observers = list(observers)
        self.expected = expected
        self.ledger = Ledger()
        self.events: dict[str, int] = {}
        self.repeated_uploads: dict[str, dict[int, int]] = {}
        self.samples_seen = 0
        self.rounds_completed = 0
        self.last_counted_round = 0
        self._grid: ObservedGrid | None = None
        self._num_rounds = 0
        self._num_empty_rounds = 0
        self._federation: Federation | None = None

    @property
    def trained_module(self) -> nn.Module:
        """The part of the model that clients hold."""
        return self.model.full_model if self.is_whole_model else self.model.client_model

    def client_weights(self) -> ParameterDict:
        """Return the trainable parameters that clients hold; views, not copies."""
        return trainable_parameters(self.trained_module)

    def client_plan(self, run_id: str, num_clients: int) -> ClientPlan:
        """Return what clients must know.

        Raises:
            UserError: if the cohort is larger than the population.
        """
        require_cohort(self.config.cohort_size, num_clients)
        return ClientPlan(
            run_id=run_id,
            method=self.method,
            config=self.config,
            num_clients=num_clients,
            clients_per_node=self.deployment.clients_per_node,
            replica_storage=self.deployment.replica_storage,
            joint_passes=self.deployment.joint_passes,
            num_threads=self.deployment.num_threads,
            client_device=self.deployment.client_device,
            is_whole_model=self.is_whole_model,
            has_mask=self.model.has_mask,
            fixed_checksum=checksum(fixed_state(self.trained_module)),
            faults=self.deployment.faults,
            attack=self.deployment.attack,
            workload=self.deployment.workload,
        )

    def initial_arrays(self) -> ArrayRecord:
        """Return the model as it is now, under the full model's names."""
        return ArrayRecord(self.model.full_state_dict())

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model; return the arrays that Flower's loop passes around."""
        self.model.load_full_state_dict(initial_arrays.to_torch_state_dict())
        return initial_arrays

    def arrays(self) -> ArrayRecord:
        """Return the current global model under the full model's names."""
        return ArrayRecord(self.model.full_state_dict())

    def sample_cohort(self, round: int) -> list[int]:
        """Return the ids of the clients that take part in ``round``, ascending."""
        return self.config.sample_cohort(round, self.federation.population)

    def clients_alone(self) -> nn.Module | None:
        """Return what clients could use without the server, with outputs like the whole model's.

        None where they hold nothing of the kind.
        """
        return None

    def end(self) -> None:
        """Do what is left to do after the last round."""

    @property
    def quorum(self) -> Quorum:
        """How many clients must answer."""
        return Quorum(self.deployment.quorum, self.deployment.quorum_rounds)

    @property
    def has_lost_quorum(self) -> bool:
        """Whether so many rounds in a row came to nothing that the run ends."""
        return self._num_empty_rounds >= self.quorum.patience

    @property
    def federation(self) -> Federation:
        """The clients of the run that is going on."""
        if self._federation is None:
            raise RuntimeError("the strategy has not been started")
        return self._federation

    @property
    def samples_forwarded(self) -> int:
        """Samples that a client's forward and backward passes are counted for."""
        return self.samples_seen

    @property
    def num_exchanges(self) -> int:
        """Times that the server has sent something and waited for the answers."""
        return self._grid.num_exchanges if self._grid else 0

    @property
    def joint_passes(self) -> list[JointPassChoice]:
        """Which batches of several clients were run at once, as far as clients told."""
        return self._grid.joint_passes if self._grid else []

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        resume: RunState | None = None,
    ) -> Result:
        """Run the method for ``num_rounds`` rounds; arguments as in Flower's own strategies.

        ``evaluate_fn`` is called before the first round, every ``evaluate_every`` rounds and
        after the last. With ``resume``, the rounds that another process left are run, and
        ``num_rounds`` is still that of the whole run.

        Raises:
            UserError: if the settings do not fit the federation.
            RunFailedError: if the run cannot go on; what was measured so far stays available.
        """
        self._forget_last_run()
        faults, seed = self.deployment.faults, self.config.root_seed
        repeats = partial(faults.repeats, seed) if faults.twice else None
        num_parameters = sum(1 for _ in self.model.full_model.parameters())
        max_reply_bytes = int(self.deployment.max_reply_mb * 1e6)
        observed = self._grid = ObservedGrid(
            grid,
            self.ledger,
            repeats,
            has_shared_replicas=self.deployment.replica_storage == "worker",
            max_reply_bytes=max_reply_bytes,
            longest_header=header_limit(_MOST_OTHERS + 8 * num_parameters),
        )
        self._num_rounds = num_rounds
        arrays = self.begin(initial_arrays)
        num_clients = self.deployment.num_clients
        if num_clients is None:
            per_node = self.deployment.clients_per_node
            num_nodes = len(connected_nodes(grid, 1, self.deployment.exchange_timeout_s))
            num_clients = num_nodes * per_node
            log.info("%d clients on %d connected SuperNodes", num_clients, num_nodes)
        plan = self.client_plan(secrets.token_hex(8), num_clients)
        self._federation = Federation(
            observed,
            plan,
            min(timeout, self.deployment.exchange_timeout_s),
            max_reply_bytes,
            self.expected
            or ExpectedSamples.of_model(self.model, is_whole_model=self.is_whole_model),
        )
        self.meet_clients(resume)
        if resume is not None:
            arrays = self.arrays()
        for observer in self.observers:
            observer.on_set_up(self._federation)

        round_ends = [each for each in self.observers if isinstance(each, RoundEndObserver)]

        def end_round(round: int, current: ArrayRecord) -> MetricRecord | None:
            is_due = evaluate_fn is not None and self.is_evaluated(round)
            metrics = evaluate_fn(round, current) if evaluate_fn and is_due else None
            for observer in round_ends if round else ():
                observer.on_round_end(round, is_stopped=False)
            return metrics

        loop = Continued(self, resume.round) if resume else None
        ended = loop.shifted(end_round) if loop else end_round
        try:
            result = (loop.start if loop else super().start)(
                grid=observed,
                initial_arrays=arrays,
                num_rounds=num_rounds - (resume.round if resume else 0),
                timeout=self._federation.timeout_s,
                train_config=train_config,
                evaluate_config=evaluate_config,
                evaluate_fn=ended if evaluate_fn or round_ends else None,
            )
        except StopRunning:
            result = Result()
            for observer in round_ends if self.rounds_completed else ():
                observer.on_round_end(self.rounds_completed, is_stopped=True)
        except QuorumLostError:
            for observer in round_ends:
                observer.on_round_end(self.rounds_completed, is_stopped=True)
            raise
        self.end()
        self._take_counts()
        result.arrays = self.arrays()
        return result

    def _forget_last_run(self) -> None:
        self.ledger = Ledger()
        self.events = {}
        self.repeated_uploads = {}
        self.samples_seen = 0
        self.rounds_completed = 0
        self.last_counted_round = 0
        self._num_empty_rounds = 0

    def is_evaluated(self, round: int) -> bool:
        """Say whether the model is evaluated after ``round`` (0 = before the first)."""
        return round % self.evaluate_every == 0 or round == self._num_rounds

    def finish_round(
        self,
        round: int,
        *,
        num_samples: int,
        train_loss: float | None,
        num_replied: int,
        failures: dict[int, Failure],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count the round, tell observers, and return what Flower's loop expects.

        Raises:
            QuorumLostError: after several rounds in a row that too few clients answered.
        """
        self.rounds_completed = round
        self.samples_seen += num_samples
        self.count("dropped_clients", len(failures))
        for failure in failures.values():
            self.count(f"dropped_{failure.kind}")
        self._take_counts()
        config = self.config
        if num_replied and isinstance(config, AggregatedConfig):
            self.count("too_few_for_rule", not config.robust.is_enough(num_replied))
        if num_replied:
            self.last_counted_round, self._num_empty_rounds = round, 0
        else:
            self.count("empty_rounds")
            # A round for which nobody was there is no sign that anything is wrong.
            self._num_empty_rounds += bool(self.sample_cohort(round))
            if self.has_lost_quorum:
                reasons = (f"client {m}: {failure}" for m, failure in failures.items())
                raise QuorumLostError(
                    f"too few clients answered in {self.quorum.patience} rounds in a row, the last "
                    f"of them round {round}; the first reason in round {round} is from "
                    f"{next(reasons, 'nobody')}"
                )
        report = RoundReport(round, self.samples_seen, train_loss, num_replied, failures)
        answers = [observer.on_round(report) for observer in self.observers]
        if not all(answers):  # every observer has seen the round by then
            raise StopRunning
        record = MetricRecord({"num-samples": num_samples, "num-replied": num_replied})
        if train_loss is not None:
            record["train-loss"] = train_loss
        return (self.arrays() if self.is_evaluated(round) else None), record

    def count(self, event: str, times: int = 1) -> None:
        """Count something that went wrong and was dealt with."""
        if times:
            self.events[event] = self.events.get(event, 0) + times

    def _take_counts(self) -> None:
        for event, times in self.federation.grid.take_events().items():
            self.count(event, times)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate at the server only."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Evaluate at the server only."""
        return None
