"""Real processes killed at random instants, also while they write: no work but the last is lost.

``LEANSPLIT_KILLS=30 python -m pytest tests/experiments/test_crashes.py`` kills that many for all
methods together (docs/resuming.md).
"""

import os
import random
import signal
import time
from multiprocessing import get_context

import pytest

from leansplit.experiments.running import run_and_write
from leansplit.server_app.checkpoint_files import find_checkpoints, read_checkpoint
from leansplit.server_app.checkpoints import resumable
from leansplit.server_app.config import run_config
from leansplit.server_app.results import RESULT_FILE, read_run

METHODS = ["ho-sfl", "heron-sfl", "sflv2"]
KILLS = -(-int(os.environ.get("LEANSPLIT_KILLS", "3")) // len(METHODS))
ROUNDS = 8
LOADED_ONCE = [  # by the server that processes are forked from
    "leansplit.experiments.running",
    "leansplit.clients.app",
    "pyarrow.parquet",
    "sklearn.datasets",
    "torch._dynamo",
    __name__,
]
pytestmark = pytest.mark.timeout(300 + 60 * KILLS)


def config(method):
    settings = {
        "task_options.max_train": 60,
        "task_options.max_test": 20,
        "clients": 6,
        "cohort": 3,
        "rounds": ROUNDS,
        "evaluate_every": 2,
        "checkpoint_every": 1,
        "replica_storage": "worker",
        "workers": -1,
        "client.momentum": 0.9,
        "client.lifetime": "run",
    }
    return run_config(method, settings)


def run_on(method, out):
    """Run from the newest checkpoint, or from the start; the body of a process."""
    settings = config(method)
    start = resumable(out, settings) if find_checkpoints(out) else None
    run_and_write(settings, out, start=start)


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_instants_ends_with_the_uninterrupted_bits(method, tmp_path):
    started = time.monotonic()
    whole = run_and_write(config(method), tmp_path / "whole")
    took_s = time.monotonic() - started
    draw = random.Random(f"{method} {KILLS}")
    processes = get_context("forkserver")
    processes.set_forkserver_preload(LOADED_ONCE)
    kills, resumed, folder = 0, 0, 0
    while True:
        out = tmp_path / str(folder)
        process = processes.Process(target=run_on, args=(method, out))
        process.start()
        if kills < KILLS:
            if kills % 2 == 0:  # soon after a checkpoint, perhaps in the midst of the next
                before = find_checkpoints(out)[:1]
                while process.is_alive() and find_checkpoints(out)[:1] == before:
                    process.join(0.001)
                process.join(draw.uniform(0, 0.5 * took_s / ROUNDS))
            else:
                process.join(draw.uniform(0, took_s))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        process.join()
        for path in find_checkpoints(out):
            read_checkpoint(path)  # whatever has its name is whole
        if not (out / RESULT_FILE).exists():
            assert process.exitcode == -signal.SIGKILL
            continue
        run = read_run(out)
        assert run.result.final_model_checksum == whole.final_model_checksum
        assert run.result.traffic == whole.traffic
        assert not run.result.events.keys() - {"resumes", "worker_refills"}
        resumed += run.result.events.get("resumes", 0)
        if kills == KILLS:
            break
        folder += 1
    assert resumed
