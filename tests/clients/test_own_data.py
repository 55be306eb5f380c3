"""Nodes that bring data of their own: trained on as they are, matched by class, refused clearly."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from leansplit.clients.app import OWN_DATA, task_client_app
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.methods import METHODS
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import load_task
from leansplit.tasks.workload import WorkloadConfig

CLASSES = ["cat", "cow", "dog"]


@pytest.fixture
def write(tmp_path):
    """Write a folder of random images by class; returns its path."""

    def write_to(name, counts, *, size=8, seed=0):
        draw = np.random.default_rng(seed)
        for split in ("train", "test"):
            for label, count in counts.items():
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = draw.integers(0, 255, (size, size), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
        return str(tmp_path / name)

    return write_to


@pytest.fixture
def server_data(write):
    return write("server", dict.fromkeys(CLASSES, 5))


def configure(server_data, **changes):
    data = {"task": "images", "task_options.data_path": server_data, "model": "digits-cnn"}
    sizes = {"clients": 2, "cohort": 2, "rounds": 2, "batch_size": 4}
    return run_config("ho-sfl", {**data, **sizes, **changes})


def run(config, *folders):
    nodes = {i: {OWN_DATA: folder} for i, folder in enumerate(folders)}
    return execute(config, InProcessGrid(task_client_app(), 2, node_configs=nodes))


def own_task(config, folder):
    described = config.workload().describing(config.workload().load_task())
    return WorkloadConfig(**described.to_dict() | {"own_data": folder}).load_task()


def test_equals_the_reference_on_those_data(write, server_data):
    config = configure(server_data, evaluate_every=2)
    folders = [write("a", {"cat": 6, "dog": 3}, seed=1), write("b", {"cow": 5, "dog": 2}, seed=2)]
    outcome = run(config, *folders)
    assert outcome.num_samples == {0: 9, 1: 7}
    assert outcome.label_counts == {0: [6, 0, 3], 1: [0, 5, 2]}  # by name, in the run's order
    task = config.workload().load_task()
    model = config.workload().build_model(task)
    clients = [own_task(config, folder).train for folder in folders]
    METHODS["ho-sfl"].reference(model, task.loss, clients, config.method_config(), config.rounds)
    trained = model.full_state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in outcome.final_state.items())


def table(tmp_path):
    pd.DataFrame({"words": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    pd.DataFrame({"words": ["a", "b"]}).to_parquet(tmp_path / "test.parquet")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda write, path: str(path / "nowhere"), "nowhere' do not exist; check data="),
        (lambda write, path: "relative", "must be an absolute path"),
        (lambda write, path: table(path), "no column holds images"),
        (
            lambda write, path: write("big", {"cat": 2, "dog": 2}, size=9),
            "the shape [1, 9, 9], those",
        ),
        (lambda write, path: write("birds", {"cat": 2, "bird": 2}), "classes ['bird'] are none"),
    ],
)
def test_what_cannot_be_used_is_said_on_the_node_and_not_told(
    make, reason, write, server_data, tmp_path, caplog
):
    good = write("good", {"cat": 4, "dog": 1})
    folder = make(write, tmp_path)
    with caplog.at_level(logging.ERROR, "leansplit"):
        outcome = run(configure(server_data), good, folder)
    assert reason in caplog.text
    assert outcome.status == "failed"
    assert "client 1: its data cannot be used; its own log says why" in outcome.error


def test_a_task_without_files_and_shared_nodes_are_refused(write, server_data, caplog):
    folder = write("good", {"cat": 4, "dog": 1})
    digits = run_config("ho-sfl", {"clients": 2, "cohort": 2, "rounds": 1})
    assert run(digits, folder, folder).status == "failed"
    assert "task 'digits' has no data_path" in caplog.text
    crowded = configure(server_data, clients=4, clients_per_node=2)
    assert run(crowded, folder, folder).status == "failed"
    assert "hosts one client" in caplog.text


def test_a_task_read_from_a_folder_describes_itself(server_data):
    config = configure(server_data)
    described = config.workload().describing(config.workload().load_task())
    assert (described.class_names, described.input_shape) == (CLASSES, [1, 8, 8])
    digits = run_config("ho-sfl", {}).workload()
    assert digits.describing(load_task("digits")) == digits
