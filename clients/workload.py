"""What a client works on, built once for each worker process and not once for each message."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leansplit.devices import exact_float32, usable_device
from leansplit.errors import UserError
from leansplit.federated import ClientData, Replica, sample_order
from leansplit.first_order import Loss
from leansplit.hybrid_order import Segments, segments_at
from leansplit.models import LocalModel, SplitModel
from leansplit.wire import ClientPlan
from leansplit.zeroth_order import JointPasses


@dataclass
class Workload:
    """A model and everybody's data.

    Attributes:
        model: both halves; split methods use ``client_model``, FedAvg the composition.
        client_data: client id -> that client's samples.
        loss: (outputs, labels) -> mean loss; only first-order clients need it.
        num_classes: if labels are class indices 0 to num_classes - 1, else 0.
    """

    model: SplitModel
    client_data: Callable[[int], ClientData]
    loss: Loss | None = None
    num_classes: int = 0


_NO_ORDER: NDArray[np.int64] = np.empty(0, np.int64)

Provider = Callable[[ClientPlan], Workload]
"""Builds the workload that a plan describes."""


@dataclass
class Worker:
    """What one process keeps for one plan: the workload, cuts of it, a simulation's replica."""

    workload: Workload
    device: torch.device = torch.device("cpu")
    """Where it computes for its clients, and where the model is; their data are on the CPU."""
    shared_replica: Replica | None = None
    data: dict[int, ClientData] = field(default_factory=dict)
    segments: dict[str, Segments] = field(default_factory=dict)
    passes: JointPasses = field(default_factory=JointPasses)
    """Runs the batches of several clients at once, where a node hosts several."""
    local_model: LocalModel | None = None
    """Client model and auxiliary head, for the methods that have one; built at the first need."""
    no_smashed_data: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    """Shape of an input -> z of no samples; see :meth:`smashed_data_of_none`."""
    _orders: dict[int, tuple[int, NDArray[np.int64]]] = field(default_factory=dict)

    def computing(self) -> AbstractContextManager[None]:
        """Return the context in which this process computes for its clients."""
        return nullcontext() if self.device.type == "cpu" else exact_float32()

    def client_data(self, client_id: int) -> ClientData:
        """Return a client's samples; where they are is looked up at the first call."""
        if client_id not in self.data:
            self.data[client_id] = self.workload.client_data(client_id)
        return self.data[client_id]

    def sample_order(
        self, root_seed: int, round: int, client_id: int, num_samples: int
    ) -> NDArray[np.int64]:
        """Return :func:`leansplit.federated.sample_order`, drawn once for all messages of a round.

        Of each client the last is kept.
        """
        when, kept = self._orders.get(client_id, (-1, _NO_ORDER))
        if when != round or len(kept) != num_samples:
            kept = sample_order(root_seed, round, client_id, num_samples)
            self._orders[client_id] = (round, kept)
        return kept

    def smashed_data_of_none(self, batch: Tensor) -> Tensor:
        """Return z of no samples, shape [0, ...], as it follows from the inputs of a batch.

        The batch is run forward, once for each shape of an input. It is a whole one because there
        are layers that cannot take a single sample.
        """
        shape = tuple(batch.shape[1:])
        if shape not in self.no_smashed_data:
            with torch.inference_mode():
                smashed = self.workload.model.client_model.eval()(batch.to(self.device))
            self.no_smashed_data[shape] = smashed[:0].clone()
        return self.no_smashed_data[shape]

    def segments_at(self, boundary: str) -> Segments:
        """Return the model's segments at an order boundary, cutting it at the first call."""
        if boundary not in self.segments:
            self.segments[boundary] = segments_at(self.workload.model, boundary)
        return self.segments[boundary]


_workers: dict[str, Worker] = {}  # at most one entry: the plan that this process serves now


def forget_workers() -> None:
    """Be as new as a process that has just started."""
    _workers.clear()


def worker_for(plan: ClientPlan, provider: Provider) -> Worker:
    """Return this process's worker for ``plan``, building it at the first call.

    Raises:
        UserError: if there is no such device here, or the provider finds something wrong.
    """
    if plan.digest not in _workers:
        if plan.num_threads:
            torch.set_num_threads(plan.num_threads)
        device = usable_device(plan.client_device)
        workload = provider(plan)
        trained = workload.model.full_model if plan.is_whole_model else workload.model.client_model
        try:
            trained.to(device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the clients' model does not fit on {device} beside those of other processes; set "
                "fewer workers"
            ) from error
        worker = Worker(workload, device, passes=JointPasses(plan.joint_passes))
        _workers.clear()  # an earlier run's data and model are not needed any more
        _workers[plan.digest] = worker
    return _workers[plan.digest]
