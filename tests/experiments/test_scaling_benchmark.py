"""The scaling benchmark: runs that take turns, each compared with the first."""

import multiprocessing
import re
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import psutil
import pytest
import typer.testing

from leansplit.experiments.benchmarks import scaling


@contextmanager
def thread_of(config):
    """Stand in for a process of its own, which takes seconds to start."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=scaling.take_steps, args=(config, theirs), daemon=True)
    thread.start()
    yield ours, psutil.Process()
    thread.join(60)


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.setattr(scaling, "process_of", thread_of)
    app = typer.Typer()
    app.command()(scaling.main)

    def run(*arguments):
        return typer.testing.CliRunner().invoke(app, [*map(str, arguments)])

    return run


def test_every_point_is_compared_with_the_first(scale):
    points = ["clients=3,cohort=3", "clients=300,cohort=2,model_options.channels=[4, 4]"]
    given = [argument for point in points for argument in ("--point", point)]
    done = scale(*given, "--steps", 2, "--set", "batch_size=5", "--set", "task_options.max_test=9")
    assert done.exit_code == 0, done.output
    _, first, second = done.output.splitlines()
    assert re.match(
        r"clients=3, cohort=3: \S+ s a step, 1\.00 of .* \(quartiles 1\.00 to 1\.00\)", first
    )
    assert "for each client more" in second and "for each client more" not in first
    assert second.startswith("clients=300, cohort=2, model_options.channels=[4, 4]: ")


def test_memory_is_read_outside_of_steps_and_once_more_at_the_end(monkeypatch):
    said = []
    connection = SimpleNamespace(send=lambda _: said.append("go on"), recv=lambda: None)
    peaks = iter([300, 450])  # of the run's own process: after the last step, and at its end

    def memory(_):
        said.append("memory")
        return 100, 1000

    monkeypatch.setattr(scaling, "memory_bytes", memory)
    monkeypatch.setattr(scaling, "peak_bytes", lambda _: next(peaks))
    measured = scaling.Measured()
    steps = scaling.program(connection, SimpleNamespace(pid=1), 2, measured)
    steps(lambda: said.append("step"))
    assert said == ["go on", "step", "go on", "step", "memory", "go on", "go on"]
    assert (measured.held_bytes, measured.peak_bytes) == (100, 1150)


def test_every_client_fills_a_batch():
    points = [scaling.Point.of(keys, {}, steps=2) for keys in scaling.POINTS["clients"]]
    for config in (point.config for point in points):
        images = 1437 * config.task_options["copies"]
        assert images >= config.batch_size * config.clients
    assert [point.config.task_options["copies"] for point in points] == [1, 56, 56]


def test_a_run_that_fails_is_named(scale):
    done = scale("--point", "clients=3,cohort=3,task_options.max_test=0", "--steps", 2)
    assert done.exit_code == 1 and "max_test must be at least 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of clients, workers, directions, parameters"),
        (["client"], "did you mean 'clients'"),
        (["clients", "--point", "clients=3"], "or points of your own"),
        (["clients", "--steps", 1], "steps must be at least 2, got 1"),
    ],
)
def test_mistakes_are_named(scale, arguments, message):
    done = scale(*arguments)
    assert done.exit_code == 2 and message in done.stderr
