"""A process loads data and model once, however many clients and messages it serves."""

from collections import Counter

import numpy as np
import pytest
import torch

from leansplit.clients import workload as workers
from leansplit.clients.app import app
from leansplit.clients.attacks import Relabelled
from leansplit.federated import num_samples_of, sample_order, samples_at
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import workload
from leansplit.tasks.task import Examples, Share


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
    assert calls["select"] == 0
    [worker] = workers._workers.values()
    participants = {entry.client_id for entry in outcome.ledger if entry.round > 0}
    assert worker.data.keys() == participants
    assert len({id(share.examples) for share in worker.data.values()}) == 1  # nobody has a copy


def test_a_share_is_a_copy_of_its_rows():
    examples = Examples(torch.arange(24.0).reshape(8, 3), torch.arange(8))
    rows = np.array([6, 1, 4])
    share, copied = Share(examples, torch.from_numpy(rows)), examples.select(rows)
    assert len(share) == num_samples_of(share) == num_samples_of(copied) == 3
    assert torch.equal(share.inputs, copied.inputs) and torch.equal(share.labels, copied.labels)
    for positions in (np.array([2, 0]), np.array([1, 1, 2])):
        for found, expected in zip(
            samples_at(share, positions), samples_at(copied, positions), strict=True
        ):
            assert torch.equal(found, expected) and found.stride() == expected.stride()
    relabelled = Relabelled(share, 8)
    assert relabelled.labels.tolist() == [1, 6, 3] and len(relabelled) == 3
    inputs, labels = samples_at(relabelled, np.array([2, 0]))
    assert torch.equal(inputs, copied.inputs[[2, 0]]) and labels.tolist() == [3, 1]


def test_the_order_of_a_round_is_drawn_once(monkeypatch):
    drawn = []

    def counted(*arguments):
        drawn.append(arguments)
        return sample_order(*arguments)

    monkeypatch.setattr(workers, "sample_order", counted)
    worker = workers.Worker(workers.Workload(model=None, client_data=None))
    asked = [(7, 1, 3, 5), (7, 1, 3, 5), (7, 1, 4, 5), (7, 2, 3, 5), (7, 2, 3, 6), (7, 1, 3, 6)]
    for arguments in asked:
        assert worker.sample_order(*arguments).tolist() == sample_order(*arguments).tolist()
    assert drawn == [asked[0], *asked[2:]]
