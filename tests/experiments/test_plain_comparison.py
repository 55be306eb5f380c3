"""`leansplit compare --plain`: plain loops with the tables, plots and resuming of any other."""

import sys

import pytest

from leansplit.experiments import cli
from leansplit.server_app.results import find_runs, read_run
from tests.whole_grid import WHOLE_GRID

EXPERIMENT = """
title = "Plain loops"
seeds = [0]
[shared]
task = "digits"
task_options.max_train = 60
task_options.max_test = 20
clients = 4
cohort = 2
rounds = 3
workers = -1
[[methods]]
method = "heron-sfl"
[[methods]]
method = "heron-sfl"
label = "HERON-SFL, client frozen"
frozen_client = true
[[methods]]
method = "sflv2"
[[methods]]
method = "frozen"
"""


@pytest.fixture
def leansplit(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["leansplit", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def compare(leansplit, tmp_path):
    file, out = tmp_path / "plain.toml", tmp_path / "out"
    file.write_text(EXPERIMENT)
    return lambda *options: leansplit("compare", file, "--out", out, *options)


def checksums(folder):
    runs = [read_run(path).result for path in find_runs(folder)]
    return {run.label: (run.engine, run.device, run.final_model_checksum) for run in runs}


def test_plain_comparison_ends_in_the_federations_bits_and_says_what_it_is(compare, tmp_path):
    out = tmp_path / "out"
    code, err = compare("--plain", "--device", "cpu")
    assert code == 0, err
    plain = checksums(out)
    assert len(plain) == 4 and {found[:2] for found in plain.values()} == {("plain", "cpu")}
    names = {path.name for path in out.iterdir()}
    assert {"summary.csv", "summary.md", "report.html", "accuracy_vs_samples.png"} <= names
    text = (out / "summary.md").read_text()
    assert text.count("- Run by: the methods' plain loops on cpu: nothing crossed") == 1
    assert "Client and head alone (%)" in text and "- Date: " in text and "- Hardware: " in text

    code, err = compare("--plain")
    assert code == 0 and err.count("done before") == 4
    code, err = compare()
    assert code == 0, err
    assert err.count("it was made by plain loops on cpu, not by Flower; runs again") == 4
    federated = checksums(out)
    assert {label: found[2] for label, found in plain.items()} == {
        label: found[2] for label, found in federated.items()
    }
    assert {found[:2] for found in federated.values()} == {("flower", "cpu")}
    assert "Run by" not in (out / "summary.md").read_text()


@pytest.mark.skipif(not WHOLE_GRID, reason="LEANSPLIT_WHOLE_GRID=1 runs it")
def test_plain_runs_go_side_by_side(compare, tmp_path):
    code, err = compare("--plain", "--jobs", "2", "--methods", "frozen,sflv2")
    assert code == 0, err
    assert {found[:2] for found in checksums(tmp_path / "out").values()} == {("plain", "cpu")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda"), "--device is for plain loops: add --plain"),
        (("--plain", "--device", "cudda"), "device 'cudda' cannot be used here"),
        (("--plain", "--device", ""), "device '' cannot be used here"),
    ],
)
def test_mistakes_are_one_line(options, message, compare):
    code, err = compare(*options)
    assert code == 2 and message in err and "Traceback" not in err
