"""One run by the method's plain loop: on one device, without messages.

The loops of :mod:`leansplit.reference` follow the device of the model and the data, so this is how
a method runs on a GPU. On the CPU the final model is the federated run's, bit for bit.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
import time
from collections.abc import Callable

import torch

from leansplit.clients.task_workload import task_client_data
from leansplit.devices import exact_float32
from leansplit.errors import UserError
from leansplit.federated import ClientData
from leansplit.parameters import copied
from leansplit.server_app.closed_form import ClosedForm
from leansplit.server_app.config import RunConfig
from leansplit.server_app.cost_check import measure_on_gpu, step_figures
from leansplit.server_app.execution import (
    attending_config,
    example_batch,
    new_outcome,
    record_end,
    record_failure,
)
from leansplit.server_app.methods import METHODS
from leansplit.server_app.recording import Outcome, Progress, Recorder
from leansplit.strategies.running import StopRunning
from leansplit.tasks import Examples


def require_watchable(method: str) -> None:
    """Raise ``UserError`` if the method's plain loop cannot be watched."""
    if "after_round" not in inspect.signature(METHODS[method].reference).parameters:
        raise UserError(
            f"the plain loop of {method} takes no after_round, so it cannot be evaluated on its "
            "way; see docs/extending.md"
        )


def execute_plain(
    config: RunConfig,
    *,
    device: torch.device,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run the plain loop of ``config.method`` on ``device``.

    Cohorts, batches, noise and evaluations are those of the federated run. Nothing crosses:
    traffic is that of the closed formulas, without envelopes, as if the run ended at each
    evaluation; round trips are not counted. What a client step costs is measured on the CPU.

    Args:
        config: what to run; keys of the deployment, such as ``workers``, are not used.
        device: where everything is computed; see :func:`leansplit.devices.usable_device`.
        stop: set it to end the run after the current round or evaluation.
        on_progress: called after every round and evaluation.

    Raises:
        UserError: if the configuration does not fit the data, or the loop cannot be watched.
    """
    require_watchable(config.method)
    if config.faults.are_any or config.attack.kind != "none":
        raise UserError("plain loops have no clients that could fail or lie; leave --plain out")
    if config.client_device != "cpu":
        raise UserError("plain loops have no clients; leave client_device out and give --device")
    torch.set_num_threads(config.num_threads)
    workload, method = config.workload(), METHODS[config.method]
    task = workload.load_task()
    model = workload.build_model(task)
    settings, costs = attending_config(config, task, model)
    outcome = new_outcome(config, settings, task, model, costs)
    outcome.engine, outcome.device = "plain", str(device)
    if device.type == "cuda":
        batch = example_batch(config, task)
        outcome.measured = measure_on_gpu(config, settings, task.loss, model, batch, device)
        if outcome.client_costs is not None:
            outcome.predicted = step_figures(outcome.client_costs)
        outcome.measured_by = f"torch.cuda.max_memory_allocated of one step on {device}"

    client_data = task_client_data(workload, task)
    clients = [client_data(m) for m in range(config.clients)]
    outcome.num_samples = {m: len(data) for m, data in enumerate(clients)}
    if task.num_classes:
        outcome.label_counts = {
            m: data.labels.bincount(minlength=task.num_classes).tolist()
            for m, data in enumerate(clients)
        }
    loop = ClosedForm(config, settings, task, model, outcome.num_samples, clients.__getitem__)
    model.full_model.to(device)
    clients = [examples_on(data, device) for data in clients]
    there = dataclasses.replace(task, test=examples_on(task.test, device))
    evaluated = copied(model.full_model)
    recorder = Recorder(outcome, there, loop, evaluated, stop or threading.Event(), on_progress)

    def after_round(round: int) -> bool:
        if not recorder.on_round(loop.finish(round)):
            return False
        try:
            if round % config.evaluation_period == 0 or round == config.rounds:
                recorder.evaluate(round, loop.arrays())
        except StopRunning:
            return False
        return True

    trained: object = None
    started = time.monotonic()
    try:
        with exact_float32():
            recorder.evaluate(0, loop.arrays())
            trained = method.reference(
                model, task.loss, clients, settings, config.rounds, after_round=after_round
            )
    except StopRunning:
        pass  # before the first round: the initial model is at the target, or a stop was asked for
    except UserError:
        raise
    except Exception as error:
        record_failure(outcome, error)
    outcome.wall_time_s = time.monotonic() - started
    outcome.ledger = loop.ledger
    outcome.samples_forwarded = loop.samples_forwarded
    if loop.num_empty_rounds:
        outcome.events = {"empty_rounds": loop.num_empty_rounds}
    is_whole = trained is not None and outcome.status != "failed"
    alone = method.clients_alone(settings, model, clients, trained) if is_whole else None
    record_end(outcome, there, model, alone)
    return outcome


def examples_on(data: ClientData, device: torch.device) -> Examples:
    """Return samples as one copy on ``device``."""
    return Examples(data.inputs.to(device), data.labels.to(device))
