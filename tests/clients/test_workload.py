"""A process loads data and model once, however many clients and messages it serves."""

from collections import Counter

import pytest

from leansplit.clients import workload as workers
from leansplit.clients.app import app
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import workload
from leansplit.tasks.task import Examples


@pytest.fixture
def calls(monkeypatch):
    """How often data are loaded, models built, and samples taken out of all."""
    counted = Counter()

    def count(owner, name):
        original = getattr(owner, name)

        def counting(*args, **kwargs):
            counted[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(workload, "load_task")
    count(workload.WorkloadConfig, "build_client_model")
    count(Examples, "select")
    workload._load_task.cache_clear()
    workers.forget_workers()
    return counted


@pytest.mark.parametrize("method", ["ho-sfl", "sflv1", "fedavg"])
def test_data_and_model_are_loaded_once_for_all_clients_and_rounds(method, calls):
    settings = {
        **{"clients": 6, "cohort": 4, "rounds": 5, "evaluate_every": 5},
        **{"task_options.max_train": 61, "task_options.max_test": 20},
    }
    outcome = execute(run_config(method, settings), InProcessGrid(app, 6))
    assert outcome.status == "completed", outcome.error
    assert calls["load_task"] == 1  # the server's process is the clients', too
    assert calls["build_client_model"] == 1
    participants = len({entry.client_id for entry in outcome.ledger if entry.round > 0})
    assert calls["select"] == 6 + participants  # the set-up's look, then once for good
