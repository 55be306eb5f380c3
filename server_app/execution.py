"""One run, from configuration to outcome, on whatever grid it is given."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from leansplit.clients.task_workload import task_client_data
from leansplit.errors import RunFailedError, UserError
from leansplit.federated import MethodConfig
from leansplit.hybrid_order import BoundaryGroup
from leansplit.models import SplitModel
from leansplit.models.language.halves import WholeLanguageModel
from leansplit.parameters import checksum, copied, load_state_
from leansplit.server_app.budget import Budget, EndedBy
from leansplit.server_app.client_costs import ClientCosts, measure
from leansplit.server_app.config import RunConfig
from leansplit.server_app.evaluation import evaluate
from leansplit.server_app.generation import Written, write_texts
from leansplit.server_app.methods import METHODS
from leansplit.server_app.results import ROUNDS_COLUMNS
from leansplit.server_app.telemetry import EstimateWatcher
from leansplit.strategies.federation import Federation
from leansplit.strategies.running import Deployment, RoundReport, StopRunning
from leansplit.tasks.task import Task
from leansplit.wire import Ledger

log = logging.getLogger("leansplit")

Status = Literal["completed", "interrupted", "failed"]
Engine = Literal["flower", "plain"]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for progress displays."""

    round: int
    samples_seen: int
    num_bytes: int
    """Traffic so far, both directions."""
    accuracy: float | None
    """Of the last evaluation."""
    budget: Budget
    """What the run may last."""

    @property
    def share_done(self) -> float:
        """How much of the run is over at most: a target accuracy may end it any time."""
        return self.budget.share_spent(self.round, self.samples_seen, self.num_bytes)


@dataclass
class Outcome:
    """What a run measured, complete or not."""

    config: RunConfig
    settings: MethodConfig | None = None
    """What the method ran with; see :attr:`MethodSpec.settle`."""
    status: Status = "completed"
    ended_by: EndedBy = "rounds"
    """The budget that was spent first, or what cut the run short."""
    error: str | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """One row for each evaluation."""
    ledger: Ledger = field(default_factory=Ledger)
    events: dict[str, int] = field(default_factory=dict)
    samples_seen: int = 0
    rounds_completed: int = 0
    num_exchanges: int = 0
    client_costs: ClientCosts | None = None
    """Of one client step on a full batch."""
    boundaries: tuple[BoundaryGroup, ...] = ()
    """Which clients train how much of the model by zeroth order (HO-FL)."""
    client_replays: float = 0.0
    """Forward passes for each sample that a client repeats to save memory."""
    samples_forwarded: int = 0
    """Samples that clients' passes are counted for; all that were seen, but for one-off uploads."""
    wall_time_s: float = 0.0
    local_accuracy: float | None = None
    """Of what clients could use without the server, at the end; see
    :meth:`RunningStrategy.clients_alone`."""
    engine: Engine = "flower"
    """Who ran it: Flower, or the method's plain loop."""
    device: str = "cpu"
    """Where it was computed."""
    measures: dict[str, float] = field(default_factory=dict)
    """The task's further metrics of the final model, by name."""
    written: Written | None = None
    """What the final model wrote, where the task is to write text."""
    language_model: WholeLanguageModel | None = None
    """The final model, if it is one that has adapters to save."""
    final_model_checksum: str = ""
    final_state: dict[str, torch.Tensor] = field(default_factory=dict)
    num_samples: dict[int, int] = field(default_factory=dict)
    """client id -> training samples it holds."""
    label_counts: dict[int, list[int]] = field(default_factory=dict)
    """client id -> samples of each class."""
    num_train_samples: int = 0
    """Training samples in all, held by a client or not."""
    telemetry: list[dict[str, Any]] = field(default_factory=list)
    """One row for each gradient estimate that was measured."""
    task_notes: str = ""
    """Where the data come from, if that matters to a reader."""


class Watched(Protocol):
    """What a recorder reads of whatever trains the model: a strategy, or a plain loop."""

    samples_seen: int

    @property
    def ledger(self) -> Ledger:
        """What crossed so far."""
        ...

    @property
    def num_exchanges(self) -> int:
        """Round trips so far."""
        ...

    def arrays(self) -> ArrayRecord:
        """Return the current global model under the full model's names."""
        ...


class Recorder:
    """Watches a run: evaluates, keeps rows, ends the run at its budget or on request."""

    def __init__(
        self,
        outcome: Outcome,
        task: Task,
        watched: Watched,
        model: torch.nn.Module,
        stop: threading.Event,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._outcome = outcome
        self._task = task
        self._watched = watched
        self._model = model
        self._stop = stop
        self._on_progress = on_progress
        self._train_loss: float | None = None
        self._budget = outcome.config.budget()
        self._started = time.monotonic()

    def on_set_up(self, federation: Federation) -> None:
        """Note who holds what."""
        self._outcome.num_samples = dict(sorted(federation.num_samples.items()))
        self._outcome.label_counts = dict(sorted(federation.label_counts.items()))

    def on_round(self, report: RoundReport) -> bool:
        """Count the round; False at a budget's end or when a stop was asked for."""
        outcome = self._outcome
        outcome.samples_seen, outcome.rounds_completed = report.samples_seen, report.round
        self._train_loss = report.train_loss
        self._show_progress()
        spent = self._budget.spent_by(report.samples_seen, self._watched.ledger.total_bytes())
        if spent:
            outcome.ended_by = spent
        elif self._is_interrupted(report.round):
            outcome.status = outcome.ended_by = "interrupted"
        else:
            return True
        # The loop ends here and will not evaluate.
        metrics = self._add_row(report.round, self._watched.arrays())
        if spent and self._budget.is_reached(metrics["accuracy"]):
            outcome.ended_by = "accuracy"  # both at once: that the target was reached says more
        return False

    def evaluate(self, round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global model and add a row.

        Raises:
            StopRunning: at the target accuracy, or when a stop was asked for.
        """
        metrics = self._add_row(round, arrays)
        outcome = self._outcome
        if self._budget.is_reached(metrics["accuracy"]):
            outcome.ended_by = "accuracy"
            raise StopRunning
        if self._is_interrupted(round):
            outcome.status = outcome.ended_by = "interrupted"
            raise StopRunning
        return MetricRecord({**metrics})

    def _is_interrupted(self, round: int) -> bool:
        """Say whether a stop was asked for while there are rounds to stop."""
        return self._stop.is_set() and round < self._budget.rounds

    def _add_row(self, round: int, arrays: ArrayRecord) -> dict[str, float]:
        load_state_(self._model, arrays.to_torch_state_dict())
        metrics = evaluate(
            self._model, self._task, self._outcome.config.evaluation_batch_size
        ).metrics
        ledger = self._watched.ledger
        self._outcome.rounds.append(
            {
                "round": round,
                "samples_seen": self._watched.samples_seen,
                **metrics,
                "train_loss": self._train_loss,
                "uplink_bytes": ledger.total_bytes("uplink"),
                "downlink_bytes": ledger.total_bytes("downlink"),
                "num_exchanges": self._watched.num_exchanges,
                "wall_time_s": time.monotonic() - self._started,
            }
        )
        self._show_progress()
        return metrics

    def _show_progress(self) -> None:
        if self._on_progress is None:
            return
        rows = self._outcome.rounds
        self._on_progress(
            Progress(
                round=self._outcome.rounds_completed,
                samples_seen=self._outcome.samples_seen,
                num_bytes=self._watched.ledger.total_bytes(),
                accuracy=rows[-1]["accuracy"] if rows else None,
                budget=self._budget,
            )
        )


def execute(
    config: RunConfig,
    grid: Grid,
    *,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run ``config`` on ``grid``.

    Args:
        config: what to run.
        grid: where the clients are.
        stop: set it to end the run after the current round or evaluation.
        on_progress: called after every round and evaluation.

    Returns:
        What was measured; ``status`` says whether the run came to its end.

    Raises:
        UserError: if the configuration does not fit the data.
    """
    torch.set_num_threads(config.num_threads)  # per thread: a ServerApp runs in one of its own
    workload = config.workload()
    task = workload.load_task()
    model = workload.build_model(task)
    settings = settled_config(config, task, model)
    outcome = new_outcome(config, settings, task, model)
    strategy = METHODS[config.method].strategy(
        model,
        task.loss,
        settings,
        deployment=Deployment(
            num_clients=config.clients,
            clients_per_node=config.clients_per_node,
            replica_storage=config.replica_storage,
            num_threads=config.num_threads,
            exchange_timeout_s=config.exchange_timeout_s,
            workload=workload.to_dict(),
        ),
        evaluate_every=config.evaluation_period,
    )
    evaluated = copied(model.full_model)
    recorder = Recorder(outcome, task, strategy, evaluated, stop or threading.Event(), on_progress)
    strategy.observers.append(recorder)
    watcher = _estimate_watcher(config, task)
    if watcher is not None:
        strategy.observers.append(watcher)
    started = time.monotonic()
    try:
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.full_state_dict()),
            num_rounds=config.rounds,
            evaluate_fn=recorder.evaluate,
        )
    except UserError:
        raise
    except Exception as error:
        record_failure(outcome, error)
    outcome.wall_time_s = time.monotonic() - started
    outcome.ledger = strategy.ledger
    outcome.events = dict(sorted(strategy.events.items()))
    outcome.num_exchanges = strategy.num_exchanges
    outcome.samples_forwarded = strategy.samples_forwarded
    if watcher is not None:
        outcome.telemetry = watcher.rows
    if strategy.rounds_completed:
        strategy.arrays()  # brings mirror or averages into the model
        record_end(outcome, task, model, strategy.clients_alone())
    else:
        record_end(outcome, task, model, None)
    return outcome


def new_outcome(
    config: RunConfig, settings: MethodConfig, task: Task, model: SplitModel
) -> Outcome:
    """Return an outcome with what is known before the run starts."""
    method = METHODS[config.method]
    return Outcome(
        config,
        settings,
        client_costs=_measure_client(config, settings, task, model),
        boundaries=method.boundaries(settings, model, config.clients),
        client_replays=method.client_replays(settings, model.client_model),
        num_train_samples=len(task.train),
        task_notes=task.notes,
    )


def record_end(
    outcome: Outcome, task: Task, model: SplitModel, clients_alone: torch.nn.Module | None
) -> None:
    """Add the final model, and what clients reach without the server."""
    if clients_alone is not None:
        size = outcome.config.evaluation_batch_size
        outcome.local_accuracy = evaluate(clients_alone, task, size).accuracy
    final_row = outcome.rounds[-1] if outcome.rounds else {}
    outcome.measures = {k: v for k, v in final_row.items() if k not in ROUNDS_COLUMNS}
    if isinstance(model.full_model, WholeLanguageModel):
        outcome.language_model = model.full_model
        if task.generation is not None and outcome.config.generated_texts:
            outcome.written = write_texts(
                model.full_model,
                task.generation,
                batch_size=outcome.config.evaluation_batch_size,
                at_most=outcome.config.generated_texts,
            )
            outcome.measures |= outcome.written.scores()
    outcome.final_state = {k: v.cpu().clone() for k, v in model.full_state_dict().items()}
    outcome.final_model_checksum = checksum(outcome.final_state)


def record_failure(outcome: Outcome, error: Exception) -> None:
    """Note what ended the run; what was measured must not be lost to whatever went wrong."""
    outcome.status = outcome.ended_by = "failed"
    is_explained = isinstance(error, RunFailedError)
    outcome.error = str(error) if is_explained else f"{type(error).__name__}: {error}"
    if not is_explained:
        log.error("the run stopped", exc_info=error)


def settled_config(config: RunConfig, task: Task, model: SplitModel) -> MethodConfig:
    """Return the method's settings, those included that are read off the model.

    Raises:
        UserError: if the model or the batch does not allow what was asked for.
    """
    return METHODS[config.method].settle(
        config.method_config(), model, task.loss, *_example_batch(config, task)
    )


def _estimate_watcher(config: RunConfig, task: Task) -> EstimateWatcher | None:
    """Return what measures the run's estimates, on the clients' samples as this process has them.

    In a simulation these are the clients' own. SuperNodes that load other data under the same
    configuration would make the measured "true" gradient meaningless.
    """
    if not config.telemetry_every:
        return None
    return EstimateWatcher(
        config.method_config(),
        task_client_data(config.workload(), task),
        every=config.telemetry_every,
    )


def _example_batch(config: RunConfig, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        task.train.inputs[: config.batch_size].clone(),  # a view would hold all the data
        task.train.labels[: config.batch_size].clone(),
    )


def _measure_client(
    config: RunConfig, settings: MethodConfig, task: Task, model: SplitModel
) -> ClientCosts:
    """Measure a client step on a copy of the model and the first batch of the training data."""
    step = METHODS[config.method].client_step(
        settings,
        copy.deepcopy(model),
        task.loss,
        *_example_batch(config, task),
    )
    return measure(step)
