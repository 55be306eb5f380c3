"""The engine benchmark: three programs, one result."""

import re
import sys

import pytest
import typer.testing

from leansplit.experiments.benchmarks import engine

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--steps", 1], "steps must be at least 4, got 1"),
        (["digits", "--set", "cohrt=3"], "did you mean 'cohort'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output and "Traceback" not in done.output
