"""Where a step's time goes: whose work a sample is, and a table that adds up."""

import re
import signal
import time

import pytest
import typer.testing

from leansplit.experiments.benchmarks import profile

SMALL = {"clients": 4, "cohort": 3, "task_options.max_train": 60, "task_options.max_test": 20}


def run(*arguments):
    app = typer.Typer()
    app.command()(profile.main)
    return typer.testing.CliRunner().invoke(app, [*map(str, arguments)])


def function_of(module, body):
    scope = {"__name__": module, "call": body}
    exec("def work():\n    call()", scope)
    return scope["work"]


def spin():
    """Work a tenth of a second, on this process's clock: the machine may be busy."""
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass


def test_work_belongs_to_the_innermost_that_is_known():
    torchs = function_of("torch.nn.functional", spin)
    before = signal.getsignal(signal.SIGPROF)
    with profile.StackSampler() as sampler:
        function_of("leansplit.clients.app", function_of("leansplit.wire.codec", torchs))()
        function_of("leansplit.zeroth_order.estimators", function_of("flwr.app", spin))()
        function_of("leansplit.first_order.step", function_of("leansplit.models.cnn", spin))()
        function_of("leansplit.federated.sampling", function_of("leansplit.noise.seeds", spin))()
    assert signal.getsignal(signal.SIGPROF) == before
    parts, total = sampler.parts, sum(sampler.parts.values())
    expected = {profile._MESSAGES, profile._FLOWER, profile._SERVER, profile._BATCHES}
    for part in expected:
        assert parts[part] > 0.1 * total
    assert sum(parts[part] for part in expected) > 0.8 * total
    assert sampler.functions["leansplit.wire.codec.work"] > 0.1 * total


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("leansplit.zeroth_order.objective.run", profile._PASSES),  # within `forward_only`
        ("leansplit.zeroth_order.objective.float64_inner_product", profile._PRODUCTS),
        ("leansplit.noise.stream.draw_perturbation", profile._DRAWING),
        ("leansplit.noise.seeds.derive_seed", None),
        ("leansplit.clients.watched.watched", profile._COUNTING),
        ("leansplit.clients.ho_sfl.forward", profile._HANDLERS),
        ("leansplit.models.cnn.forward", None),
    ],
)
def test_the_longest_name_decides(name, part):
    assert profile._part_of(name) == part


def test_every_name_is_one_of_a_module():
    """A module that is renamed would have its time booked elsewhere, in silence."""
    import importlib

    for name in profile._PART_OF:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, function = name.rpartition(".")
            assert callable(getattr(importlib.import_module(module), function))


def test_a_table_is_printed_that_adds_up():
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    done = run("digits", "--steps", 40, *settings)
    assert done.exit_code == 0, done.output
    assert "digits: 40 steps, 3 of 4 clients, 1 threads; " in done.output
    _, after = done.output.split("whose work it is, share, time a step\n")
    parts, rest = after.split("the floor\n")
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%", parts)]
    assert len(shares) > 3 and sum(shares) == pytest.approx(100, abs=0.05 * len(shares) + 0.01)
    floor = [float(share) for share in re.findall(r"(\d+\.\d)%", rest)[:2]]
    assert sum(floor) == pytest.approx(100, abs=0.11)
    assert "us for each client and exchange" in rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--steps", 0], "steps must be at least 1, got 0"),
        (["digits", "--set", "workers=2"], "workers must be -1"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output and "Traceback" not in done.output
