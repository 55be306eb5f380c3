"""What a run measures while it goes on, and what it comes to."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, MetricRecord

from leansplit.costs import StepCosts
from leansplit.errors import RunFailedError
from leansplit.federated import MethodConfig
from leansplit.hybrid_order import BoundaryGroup
from leansplit.models.language.halves import WholeLanguageModel
from leansplit.parameters import load_state_
from leansplit.server_app.budget import Budget, EndedBy
from leansplit.server_app.config import RunConfig
from leansplit.server_app.cost_figures import CostFigures
from leansplit.server_app.evaluation import evaluate
from leansplit.server_app.generation import Written
from leansplit.server_app.placement import Placement
from leansplit.server_app.results import Engine, Status
from leansplit.strategies.federation import Federation
from leansplit.strategies.running import RoundReport, StopRunning
from leansplit.tasks.task import Task
from leansplit.wire import Ledger
from leansplit.zeroth_order import JointPassChoice


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
    repeated_uploads: dict[str, dict[int, int]] = field(default_factory=dict)
    """Kind -> client id -> uploads that the client was asked for once more in the same step."""
    samples_seen: int = 0
    rounds_completed: int = 0
    num_exchanges: int = 0
    client_costs: StepCosts | None = None
    """Of one client step on a full batch."""
    predicted: CostFigures = field(default_factory=CostFigures)
    """Costs of the step that was measured, and of the rounds that were run."""
    measured: CostFigures = field(default_factory=CostFigures)
    """The same as clients counted them, and as the ledger has them."""
    measured_by: str = ""
    """Who measured the step."""
    repeated_step_flops: int | None = None
    """FLOPs of a measured step that messages alone make necessary."""
    boundaries: tuple[BoundaryGroup, ...] = ()
    """Which clients train how much of the model by zeroth order (HO-FL)."""
    boundary_costs: Mapping[str, StepCosts] = field(default_factory=dict)
    """Of one step of a client at each boundary, where clients differ in it."""
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
    placement: Placement | None = None
    """How Flower's clients were spread."""
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
    joint_passes: list[JointPassChoice] = field(default_factory=list)
    """Which batches of several clients were run at once."""
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

    @property
    def elapsed_s(self) -> float:
        """Wall time of the run so far, of the processes before this one included."""
        return time.monotonic() - self._started

    def go_on(self, rows: Sequence[dict[str, Any]], elapsed_s: float) -> None:
        """Go on where another process ended: with its rows, and with the time that it took."""
        self._outcome.rounds[:] = rows
        self._started -= elapsed_s

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
            RunFailedError: if the test loss is not finite.
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
                "wall_time_s": self.elapsed_s,
            }
        )
        self._show_progress()
        if not math.isfinite(loss := metrics["loss"]):
            raise RunFailedError(
                f"non-finite test loss ({loss}) after round {round}; lower the learning rates"
            )
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
