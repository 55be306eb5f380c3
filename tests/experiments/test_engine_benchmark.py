"""The engine benchmark: three programs, one result."""

import re
import sys

import pytest
import typer.testing

from leansplit.experiments.benchmarks import engine
from leansplit.server_app.config import run_config
from leansplit.zeroth_order.directions import DirectionCache
from tests.pretended_device import PretendedDevice

SMALL = {"clients": 4, "cohort": 3, "task_options.max_train": 60, "task_options.max_test": 20}


def run(*arguments):
    app = typer.Typer()
    app.command()(engine.main)
    return typer.testing.CliRunner().invoke(app, [*map(str, arguments)])


def test_all_three_end_in_the_same_model():
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    done = run("digits", "--steps", 4, "--threads", 1, *settings)
    assert done.exit_code == 0, done.output
    differences = re.findall(r"differ by (\S+) at most", done.output)
    assert [float(value) for value in differences] == [0.0, 0.0]
    assert re.search(r"bare torch / leansplit: \d+\.\d\d \(quartiles", done.output)
    assert str(sys.version_info.minor) in done.output


class OneAfterTheOther:
    """Stands in for turns: torch's modes, such as a pretended device, are a thread's own."""

    def __init__(self, programs):
        self._programs = programs

    def run(self):
        seconds = {name: [] for name in self._programs}
        for name, program in self._programs.items():
            program(lambda name=name: seconds[name].append(1.0))
        return seconds


def test_core_loops_run_on_another_device(monkeypatch):
    """Where nothing may mix with the CPU: the same final model, without leansplit's engine."""
    monkeypatch.setattr(engine, "Turns", OneAfterTheOther)
    monkeypatch.setattr(engine, "launch", lambda *_, **__: pytest.fail("the core loops alone"))
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    with PretendedDevice():
        done = run("digits", "--steps", 4, "--threads", 1, "--device", "meta", *settings)
    assert done.exit_code == 0, done.output
    assert "steps of the core loops on meta" in done.output
    assert "one by one / bare torch: 1.00" in done.output and "leansplit:" not in done.output
    assert "final models of bare torch and one by one differ by 0.0e+00 at most" in done.output


def test_programs_do_not_draw_for_each_other(monkeypatch):
    """Each draws all its directions: P a step for bare torch and for leansplit."""
    drawn = []
    draw = DirectionCache.draw

    def counted(cache, seed, *rest):
        drawn.append((id(cache), seed))
        return draw(cache, seed, *rest)

    monkeypatch.setattr(DirectionCache, "draw", counted)
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    arguments = ["--steps", 4, "--threads", 1, "--joined", 2]
    assert run("digits", *arguments, *settings).exit_code == 0
    seeds_of = {}
    for cache, seed in drawn:
        seeds_of.setdefault(cache, set()).add(seed)
    both = [seeds for seeds in seeds_of.values() if len(seeds) == 7 * 5]
    assert len(both) == 2 and both[0] == both[1]


def test_bare_torch_chooses_among_all_that_leansplit_may_join(monkeypatch):
    tried = []

    class Recorded(OneAfterTheOther):
        def run(self):
            tried.append(list(self._programs))
            return {name: [9.0, 9.0, 1.0 if name == "3" else 2.0] for name in self._programs}

    monkeypatch.setattr(engine, "Turns", Recorded)
    case = engine.Case(run_config("ho-sfl", {**SMALL, "workers": -1}), threads=1)
    case.choose_batches_at_once()
    assert tried == [["1", "2", "3"]] and case.batches_at_once == 3
    case.choose_batches_at_once()
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--steps", 1], "steps must be at least 4, got 1"),
        (["digits", "--joined", -1], "joined must be at least 0, got -1"),
        (["digits", "--device", "cudda"], "device 'cudda' cannot be used here"),
        (["digits", "--set", "cohrt=3"], "did you mean 'cohort'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output and "Traceback" not in done.output
