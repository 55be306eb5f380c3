"""One run by the method's plain loop: on one device, without messages.

The loops of :mod:`leansplit.reference` follow the device of the model and the data, so this is how
a method runs on a GPU. On the CPU the final model is the federated run's, bit for bit.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

import torch
from flwr.app import ArrayRecord

from leansplit.clients.task_workload import task_client_data
from leansplit.costs import SplitShape
from leansplit.errors import UserError
from leansplit.federated import ClientData, MethodConfig, take_batch
from leansplit.models import SplitModel
from leansplit.noise import draw_perturbation
from leansplit.parameters import ParameterSpec, copied, trainable_parameters
from leansplit.server_app.config import RunConfig
from leansplit.server_app.execution import new_outcome, record_end, record_failure, settled_config
from leansplit.server_app.methods import METHODS
from leansplit.server_app.recording import Outcome, Progress, Recorder
from leansplit.strategies.running import RoundReport, StopRunning
from leansplit.tasks import Examples
from leansplit.tasks.task import Task
from leansplit.wire import Ledger

ALL_CLIENTS = -1
"""Stands for a client id in the ledger: a closed formula is about all of them together."""


def usable_device(name: str) -> torch.device:
    """Return the device called ``name``, such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        UserError: if there is none here, or it does not draw the noise that the CPU draws.
    """
    try:
        device = torch.device(name)
        drawn = draw_perturbation(1, 8, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    if not torch.equal(drawn, draw_perturbation(1, 8)):
        raise UserError(f"device {name!r} does not draw the noise that the CPU draws")
    return device


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
        device: where everything is computed; see :func:`usable_device`.
        stop: set it to end the run after the current round or evaluation.
        on_progress: called after every round and evaluation.

    Raises:
        UserError: if the configuration does not fit the data, or the loop cannot be watched.
    """
    require_watchable(config.method)
    if config.faults or config.attack.kind != "none":
        raise UserError("plain loops have no clients that could fail or lie; leave --plain out")
    torch.set_num_threads(config.num_threads)
    workload, method = config.workload(), METHODS[config.method]
    task = workload.load_task()
    model = workload.build_model(task)
    settings = settled_config(config, task, model)
    outcome = new_outcome(config, settings, task, model)
    outcome.engine, outcome.device = "plain", str(device)

    client_data = task_client_data(workload, task)
    clients = [client_data(m) for m in range(config.clients)]
    outcome.num_samples = {m: len(data) for m, data in enumerate(clients)}
    if task.num_classes:
        outcome.label_counts = {
            m: data.labels.bincount(minlength=task.num_classes).tolist()
            for m, data in enumerate(clients)
        }
    loop = PlainLoop(config, settings, task, model, clients)
    model.full_model.to(device)
    clients = [_moved(data, device) for data in clients]
    there = dataclasses.replace(task, test=_moved(task.test, device))
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
    is_whole = trained is not None and outcome.status != "failed"
    alone = method.clients_alone(settings, model, clients, trained) if is_whole else None
    record_end(outcome, there, model, alone)
    return outcome


class PlainLoop:
    """What a plain loop has come to, counted from outside: attendance, samples, traffic.

    Attributes:
        samples_seen: that clients processed so far.
        num_exchanges: 0: nothing was exchanged.
    """

    num_exchanges = 0

    def __init__(
        self,
        config: RunConfig,
        settings: MethodConfig,
        task: Task,
        model: SplitModel,
        clients: Sequence[ClientData],
    ) -> None:
        num_samples = {m: len(data.labels) for m, data in enumerate(clients)}
        self._clients = clients
        self.samples_seen = 0
        self._method = METHODS[config.method]
        self._settings = settings
        self._model = model
        self._num_samples = num_samples
        self._shape = split_shape(config, settings, task, model, num_samples)
        self._attendance: list[Set[int]] = []
        self._ledger = Ledger()

    def finish(self, round: int) -> RoundReport:
        """Count a round that has ended."""
        population = sorted(self._num_samples)
        cohort = self._method.cohort(self._settings, self._shape, population, round)
        self._attendance.append(set(cohort))
        size, steps = self._settings.batch_size, getattr(self._settings, "local_steps", 1)
        self.samples_seen += sum(steps * min(size, self._num_samples[m]) for m in cohort)
        if self._model.has_mask:
            earlier = set().union(*self._attendance[:-1])
            positions = uploaded_positions(self._clients, self._settings, round, cohort, earlier)
            total = self._shape.num_positions + positions
            self._shape = dataclasses.replace(self._shape, num_positions=total)
        self._ledger = Ledger()
        traffic = self._method.traffic(
            self._settings, self._shape, self._attendance, self.samples_seen
        )
        for (direction, kind), num_bytes in traffic.items():
            self._ledger.record(round, ALL_CLIENTS, direction, {kind: num_bytes})
        return RoundReport(round, self.samples_seen, None, len(cohort), {})

    @property
    def samples_forwarded(self) -> int:
        """Samples that a client's forward and backward passes are counted for."""
        return self._method.samples_forwarded(
            self._settings, self._shape, self._attendance, self.samples_seen
        )

    @property
    def ledger(self) -> Ledger:
        """What the closed formula says of the rounds so far."""
        return self._ledger

    def arrays(self) -> ArrayRecord:
        """Return the model as the last round left it."""
        return ArrayRecord(self._model.full_state_dict())


def split_shape(
    config: RunConfig,
    settings: MethodConfig,
    task: Task,
    model: SplitModel,
    num_samples: Mapping[int, int],
) -> SplitShape:
    """Return the sizes that a run's traffic depends on; ``model`` and ``task`` on the CPU."""
    with torch.inference_mode():
        smashed = model.client_model.eval()(task.train.inputs[:1])
    classes = task.num_classes
    return split_sizes(
        config, settings, model, smashed, num_classes=classes, num_samples=num_samples
    )


def split_sizes(
    config: RunConfig,
    settings: MethodConfig,
    model: SplitModel,
    smashed: torch.Tensor,
    *,
    num_classes: int,
    num_samples: Mapping[int, int],
) -> SplitShape:
    """Return the sizes that a run's traffic depends on.

    Args:
        config: of the run.
        settings: of its method, settled.
        model: the model at its cut, on the CPU.
        smashed: z of one sample [1, ...].
        num_classes: 0 where tokens are predicted.
        num_samples: client id -> samples that it holds.
    """
    method = METHODS[config.method]
    is_classes = num_classes > 0
    return SplitShape(
        smashed_elements=smashed.shape[-1] - 1 if model.has_mask else smashed.numel(),
        smashed_bytes=smashed.element_size(),
        labels_per_sample=1 if is_classes else 0,
        auxiliary_elements=method.auxiliary_elements(settings, model, smashed),
        client_elements=ParameterSpec.of(trainable_parameters(model.client_model)).num_elements,
        full_elements=ParameterSpec.of(trainable_parameters(model.full_model)).num_elements,
        client_samples=num_samples,
        zeroth_elements=method.zeroth_elements(settings, model, config.clients),
    )


def uploaded_positions(
    clients: Sequence[ClientData],
    config: MethodConfig,
    round: int,
    cohort: Iterable[int],
    earlier: Set[int],
) -> int:
    """Return the positions of all batches of sequences that go up in a round, padding included.

    Args:
        clients: everybody's samples.
        config: of the method.
        round: the round.
        cohort: the clients that take part.
        earlier: those that took part before.
    """
    if getattr(config, "features_once", False):
        new = [clients[m].inputs for m in cohort if m not in earlier]
        return sum(inputs.shape[0] * inputs.shape[2] for inputs in new)
    steps = getattr(config, "upload_steps", range(getattr(config, "local_steps", 1)))
    seed, size = config.root_seed, config.batch_size
    batches = [
        take_batch(clients[m], seed, round, m, h, batch_size=size) for m in cohort for h in steps
    ]
    return sum(inputs.shape[0] * inputs.shape[2] for inputs, _ in batches)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep GPUs from rounding operands to TF32 inside the block, and from choosing kernels by time.

    A finite difference of 1e-3 drowns in the ten bits of a TF32 mantissa.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    precision = torch.get_float32_matmul_precision()
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, True, False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch.set_float32_matmul_precision(precision)


def _moved(data: Examples, device: torch.device) -> Examples:
    return Examples(data.inputs.to(device), data.labels.to(device))
