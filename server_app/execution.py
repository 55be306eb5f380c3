"""One run, from configuration to outcome, on whatever grid it is given."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from leansplit.clients.task_workload import task_client_data
from leansplit.costs import StepCosts
from leansplit.errors import RunFailedError, UserError
from leansplit.federated import MethodConfig
from leansplit.models import SplitModel
from leansplit.models.language.halves import WholeLanguageModel
from leansplit.parameters import checksum, copied
from leansplit.server_app.checkpoint_files import CHECKPOINTS
from leansplit.server_app.checkpoints import (
    Checkpointer,
    Checkpoints,
    client_costs_of,
    run_state_of,
    why_not_kept,
)
from leansplit.server_app.config import RunConfig
from leansplit.server_app.cost_check import add_cost_check
from leansplit.server_app.evaluation import evaluate
from leansplit.server_app.generation import write_texts
from leansplit.server_app.methods import METHODS
from leansplit.server_app.placement import Placement
from leansplit.server_app.recording import Outcome, Progress, Recorder
from leansplit.server_app.results import ROUNDS_COLUMNS
from leansplit.server_app.taking_part import ClientCosts, attending, measure_clients
from leansplit.server_app.telemetry import EstimateWatcher
from leansplit.strategies.client_watch import ClientWatch
from leansplit.strategies.deployment import Deployment
from leansplit.strategies.failures import QuorumLostError
from leansplit.strategies.samples import MOST_SAMPLES, ExpectedSamples
from leansplit.tasks.own_data import takes_own_data
from leansplit.tasks.task import Task

log = logging.getLogger("leansplit")


def execute(
    config: RunConfig,
    grid: Grid,
    *,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoints: Checkpoints | None = None,
    placement: Placement | None = None,
) -> Outcome:
    """Run ``config`` on ``grid``.

    Args:
        config: what to run.
        grid: where the clients are.
        stop: set it to end the run after the current round or evaluation.
        on_progress: called after every round and evaluation.
        checkpoints: where they are written, and the one that the run goes on from.
        placement: where the clients are; default: as the connected SuperNodes allow.

    Returns:
        What was measured; ``status`` says whether the run came to its end.

    Raises:
        UserError: if the configuration does not fit the data.
    """
    torch.set_num_threads(config.num_threads)  # per thread: a ServerApp runs in one of its own
    workload = config.workload()
    task = workload.load_task()
    model = workload.build_model(task)
    if config.attack.kind == "label_flip" and not task.num_classes:
        raise UserError(f"attack.kind = label_flip needs classes; task {task.name!r} has none")
    if checkpoints is None and config.has_checkpoints:
        if not config.out:
            raise UserError("checkpoints need a folder: set out, or checkpoint_every = 0")
        checkpoints = Checkpoints(Path(config.out) / CHECKPOINTS)
    start = checkpoints.start if checkpoints else None
    known = client_costs_of(start) if start else None
    settings, costs = attending_config(config, task, model, known=known)
    outcome = new_outcome(config, settings, task, model, costs)
    outcome.placement = placement = placement or Placement.on_grid(config, grid)
    outcome.device = config.client_device
    strategy = METHODS[config.method].strategy(
        model,
        task.loss,
        settings,
        deployment=Deployment(
            num_clients=config.clients,
            clients_per_node=placement.clients_per_node,
            replica_storage=config.replica_storage,
            joint_passes=config.joint_passes,
            num_threads=config.num_threads,
            client_device=config.client_device,
            exchange_timeout_s=config.exchange_timeout_s,
            max_reply_mb=config.max_reply_mb,
            quorum=config.quorum,
            quorum_rounds=config.quorum_rounds,
            faults=config.faults,
            attack=config.attack,
            workload=workload.describing(task).to_dict(),
        ),
        evaluate_every=config.evaluation_period,
    )
    strategy.expected = expected_samples(config, task, model, strategy.is_whole_model)
    evaluated = copied(model.full_model)
    recorder = Recorder(outcome, task, strategy, evaluated, stop or threading.Event(), on_progress)
    client_watch = ClientWatch()
    strategy.observers += [recorder, client_watch]
    watcher = _estimate_watcher(config, task)
    if watcher is not None:
        strategy.observers.append(watcher)
    if checkpoints is not None:
        strategy.observers.append(Checkpointer(checkpoints, outcome, strategy, recorder, watcher))
    try:
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.full_state_dict()),
            num_rounds=config.rounds,
            evaluate_fn=recorder.evaluate,
            resume=run_state_of(start) if start else None,
        )
    except UserError:
        raise
    except QuorumLostError as error:
        why = why_not_kept(config, checkpoints)
        record_failure(outcome, QuorumLostError(f"{error}; {why}") if why else error)
    except Exception as error:
        record_failure(outcome, error)
    outcome.wall_time_s = recorder.elapsed_s
    outcome.ledger = strategy.ledger
    outcome.events = dict(sorted(strategy.events.items()))
    outcome.repeated_uploads = strategy.repeated_uploads
    outcome.num_exchanges = strategy.num_exchanges
    outcome.joint_passes = strategy.joint_passes
    outcome.samples_forwarded = strategy.samples_forwarded
    try:
        add_cost_check(outcome, task, model, client_watch.found)
    except Exception:  # a formula of a method of one's own must not cost the run's results
        log.exception("what the run cost could not be compared with what was predicted")
    if watcher is not None:
        outcome.telemetry = watcher.rows
    if strategy.rounds_completed:
        strategy.arrays()  # brings mirror or averages into the model
        record_end(outcome, task, model, strategy.clients_alone())
    else:
        record_end(outcome, task, model, None)
    return outcome


def new_outcome(
    config: RunConfig,
    settings: MethodConfig,
    task: Task,
    model: SplitModel,
    costs: ClientCosts,
) -> Outcome:
    """Return an outcome with what is known before the run starts."""
    method = METHODS[config.method]
    return Outcome(
        config,
        settings,
        client_costs=costs.largest,
        boundaries=costs.groups,
        boundary_costs=costs.at_boundary,
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
            try:
                outcome.written = write_texts(
                    model.full_model,
                    task.generation,
                    batch_size=outcome.config.evaluation_batch_size,
                    at_most=outcome.config.generated_texts,
                )
                outcome.measures |= outcome.written.scores()
            except Exception:  # a library that cannot must not cost the run's results
                log.exception("the model wrote no texts, so there are no BLEU and ROUGE-L")
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
        config.method_config(), model, task.loss, *example_batch(config, task)
    )


def attending_config(
    config: RunConfig, task: Task, model: SplitModel, *, known: StepCosts | None = None
) -> tuple[MethodConfig, ClientCosts]:
    """Return the settings with who can take part, and what a step costs, measured if not ``known``.

    Raises:
        UserError: as :func:`settled_config`, or if no client can take part.
    """
    settings = settled_config(config, task, model)
    batch = example_batch(config, task)
    costs = measure_clients(config, settings, model, task.loss, batch, largest=known)
    return attending(config, settings, costs), costs


def expected_samples(
    config: RunConfig, task: Task, model: SplitModel, is_whole_model: bool
) -> ExpectedSamples:
    """Return what clients' samples must be like: the task's, as the model makes them.

    How many a client has is bounded by the task's where nodes cannot bring samples of their own.
    """
    known = ExpectedSamples.of_model(model, is_whole_model=is_whole_model)
    known = known.like(model.client_model, *example_batch(config, task))
    most = MOST_SAMPLES if takes_own_data(config.task) else len(task.train)
    return dataclasses.replace(known, num_classes=task.num_classes, most_samples=most)


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


def example_batch(config: RunConfig, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first full batch of the training data."""
    return (
        task.train.inputs[: config.batch_size].clone(),  # a view would hold all the data
        task.train.labels[: config.batch_size].clone(),
    )
