"""The workload of leansplit's own runs: a registered task and model, partitioned by plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from leansplit.clients.partition import PartitionConfig
from leansplit.clients.partition_cache import cached_partition
from leansplit.clients.workload import Workload
from leansplit.errors import UserError
from leansplit.tasks.task import Examples, Share, Task
from leansplit.tasks.workload import WorkloadConfig
from leansplit.wire import ClientPlan


def provide_task_workload(plan: ClientPlan) -> Workload:
    """Load the task, draw the partition and build the model that the plan describes."""
    config = WorkloadConfig.from_dict(plan.workload)
    task = config.load_task()
    return Workload(
        model=config.build_client_model(task, extra_blocks=_extra_blocks(plan)),
        client_data=task_client_data(config, task),
        loss=task.loss,
        num_classes=task.num_classes,
    )


def _extra_blocks(plan: ClientPlan) -> int | None:
    """Return how many blocks above the cut clients hold; None = all."""
    auxiliary = getattr(plan.config, "auxiliary", None)
    if plan.is_whole_model or (auxiliary is not None and auxiliary.kind == "copy"):
        return None
    return auxiliary.num_blocks if auxiliary is not None and auxiliary.kind == "blocks" else 0


def task_client_data(config: WorkloadConfig, task: Task) -> Callable[[int], Examples | Share]:
    """Return client id -> that client's samples; every process draws the same partition.

    They stay where the task has them, which may be a file that all processes of a machine map.

    The client of a node with data of its own holds all of them.

    Raises:
        UserError: as :func:`task_shares`.
    """
    if config.own_data:
        return lambda client_id: task.train
    shares = task_shares(config, task)
    return lambda client_id: Share(task.train, torch.from_numpy(shares[client_id]))


def task_shares(config: WorkloadConfig, task: Task) -> Sequence[NDArray[np.int64]]:
    """Return the training samples that each client holds, by position.

    Raises:
        UserError: if they cannot be spread like that.
    """
    labels = task.train.labels
    if not task.num_classes:
        if config.partition.get("kind", "iid") != "iid":
            raise UserError(
                f"task {task.name!r} has no classes to spread unevenly; set partition=iid"
            )
        labels = labels.new_zeros(len(labels))
    return cached_partition(
        labels,
        num_clients=config.num_clients,
        config=PartitionConfig(**config.partition),
        seed=config.partition_seed,
    )
