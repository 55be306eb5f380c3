"""Everything that can be wrong, found out before any worker starts."""

from __future__ import annotations

import sys

from leansplit.clients.task_workload import task_shares
from leansplit.errors import UserError
from leansplit.experiments.launch import IN_PROCESS
from leansplit.models.batch_statistics import refuse_batch_statistics
from leansplit.parameters import trainable_parameters
from leansplit.server_app.config import RunConfig
from leansplit.server_app.execution import attending_config, settled_config
from leansplit.server_app.methods import METHODS


def check_run(config: RunConfig) -> None:
    """Load the task, build and cut the model, draw the partition.

    What is loaded here is kept, so nothing is done twice.

    Raises:
        UserError: for the first thing that is wrong.
    """
    if METHODS[config.method].one_client_per_node and config.clients_per_node not in (1, "auto"):
        raise UserError(
            f"{config.method} needs clients_per_node = 1 (which auto takes): Flower averages one "
            "reply a SuperNode"
        )
    if config.workers != IN_PROCESS and " " in sys.executable:
        raise UserError(
            "Ray cannot start workers from a Python whose path contains a space; move the "
            "environment, or use --workers -1 to run without Ray"
        )
    workload = config.workload()
    task = workload.load_task()
    model = workload.build_model(task)
    if METHODS[config.method].averages_weights:
        refuse_batch_statistics(model.full_model, config.method)
    if not trainable_parameters(model.client_model):
        raise UserError(
            f"the client model below {config.cut_layer!r} has nothing to train; cut later"
        )
    if config.fleet.profile:
        settings, _ = attending_config(config, task, model)
    else:
        settings = settled_config(config, task, model)
    METHODS[config.method].zeroth_elements(settings, model, config.clients)
    task_shares(workload, task)
