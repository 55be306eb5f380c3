"""Runs side by side in processes of their own: same results, errors kept apart."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.parallel import Job, run_jobs
from leansplit.experiments.running import run_and_write
from leansplit.server_app.config import run_config
from leansplit.server_app.methods import spec
from tests.whole_grid import WHOLE_GRID

# Each starts a command and its processes; a signal in the middle of a run, below, is always tested.
whole_grid = pytest.mark.skipif(not WHOLE_GRID, reason="LEANSPLIT_WHOLE_GRID=1 runs them")


def config(method, **settings):
    small = {"task_options.max_train": 120, "task_options.max_test": 30, "rounds": 2}
    return run_config(method, {"clients": 4, "cohort": 2, "workers": -1, **small, **settings})


def planned(tmp_path, rounds=2):
    shared = {"task_options.max_train": 120, "task_options.max_test": 30, "rounds": rounds}
    shared |= {"task": "digits", "clients": 4, "cohort": 2, "workers": -1}
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in shared.items()]
    methods = [f'[[methods]]\nmethod = "{name}"' for name in ("frozen", "sflv1", "fedavg")]
    (tmp_path / "mine.toml").write_text("\n".join(["[shared]", *lines, *methods]))
    return tmp_path / "mine.toml"


@pytest.fixture
def jobs(tmp_path):
    configs = [config("frozen"), config("ho-sfl")]
    return [
        Job(key, each, tmp_path / str(key), f"row {key}", ["leansplit", "compare"])
        for key, each in enumerate(configs)
    ]


def test_runs_are_those_of_one_process_and_errors_are_kept_apart(
    jobs, tmp_path, monkeypatch, request
):
    (tmp_path / "file").write_text("")
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "from dataclasses import replace\n"
        "from leansplit.server_app.methods import METHODS, register_method\n"
        "spec = METHODS['frozen']\n"
        "register_method(replace(spec, name='deadly', reference=spec.reference,\n"
        "    client_step=lambda *arguments: os._exit(1)))\n"
    )
    from leansplit.plugins import VARIABLE, load_plugin

    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    load_plugin(str(tmp_path / "deadly.py"))
    request.addfinalizer(lambda: spec._methods.pop("deadly"))
    unwritable = Job(7, jobs[0].config, tmp_path / "file" / "below", "row", [])
    deadly = Job(9, config("deadly"), tmp_path / "deadly", "row", [])
    done = dict(run_jobs([unwritable, deadly, jobs[1], jobs[0]], 1))
    assert done.keys() == {7, 9, 1, 0} and done[0].status == "completed"
    assert isinstance(done[7], UserError)
    assert isinstance(done[9], RunFailedError) and "process ended" in str(done[9])
    alone = run_and_write(jobs[1].config, tmp_path / "alone", label=jobs[1].label)
    assert done[1].status == alone.status == "completed"
    assert done[1].final_model_checksum == alone.final_model_checksum
    assert done[1].label == jobs[1].label
    assert done[1].command == ["leansplit", "compare"]
    assert (jobs[1].out_dir / "result.json").exists()


def test_a_comparison_side_by_side_is_that_one_after_the_other(tmp_path):
    from leansplit.experiments.compare import compare
    from leansplit.experiments.experiment import load_experiment

    experiment = load_experiment(planned(tmp_path))

    def run(name, jobs):
        said = []
        compared = compare(
            experiment,
            tmp_path / name,
            jobs=jobs,
            show_progress=lambda title: contextlib.nullcontext(lambda progress: None),
            say=said.append,
        )
        table = compared.summary.table
        return table.drop(columns=["wall_time_s"]).to_csv(), said

    alone, _ = run("alone", 1)
    together, said = run("together", 2)
    assert together == alone
    assert len(said) == 3
    again, said = run("together", 2)
    assert again == alone and all("done before" in line for line in said)


def test_runs_on_ray_are_not_put_side_by_side(tmp_path):
    from leansplit.experiments.experiment import PlannedRun
    from leansplit.experiments.resume import require_jobs

    planned = [PlannedRun(label="frozen", config=config("frozen", workers=0))]
    require_jobs(1, planned)
    with pytest.raises(UserError, match="workers=-1"):
        require_jobs(2, planned)
    with pytest.raises(UserError, match="--jobs must be at least 1, got 0"):
        require_jobs(0, planned)


def start_endless_comparison(tmp_path, *options, **how):
    """Return the process of ``compare --jobs 2``, with its words on stderr to read."""
    command = "from leansplit.experiments.cli import main; main()"
    out = str(tmp_path / "out")
    file = str(planned(tmp_path, rounds=100_000))
    return psutil.Popen(
        [sys.executable, "-c", command, "compare", file, "--jobs", "2", "--out", out, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


@whole_grid
def test_ctrl_c_while_processes_start_ends_a_comparison_cleanly(tmp_path):
    process = start_endless_comparison(tmp_path, "--seeds=0,1", start_new_session=True)
    while not (tmp_path / "out" / "experiment.toml").exists():  # next, the first runs start
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said and "FAILED" not in said
    assert said.count("] SFLV1, seed 0: interrupted, accuracy") == 1
    assert "interrupted: 0 of 6 runs are complete; the same command goes on from here" in said
    results = (tmp_path / "out").glob("*/*/result.json")
    assert {json.loads(path.read_text())["status"] for path in results} == {"interrupted"}


def test_an_end_that_only_the_command_hears_of_is_passed_on(tmp_path):
    """As when a script or a service manager sends it, and no terminal."""
    parent, out = start_endless_comparison(tmp_path), tmp_path / "out"
    while not {"sflv1", "frozen-client"} <= {path.name for path in out.glob("*")}:  # both run
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "Traceback" not in said and "FAILED" not in said
    assert said.count(": interrupted, accuracy") == 2
    assert len(list(out.glob("*/seed-0/result.json"))) == 2


@whole_grid
def test_a_second_ctrl_c_ends_what_runs_side_by_side(tmp_path):
    """Also if the processes hear nothing of it, as when a script presses it."""
    parent, out = start_endless_comparison(tmp_path), tmp_path / "out"
    while not {"sflv1", "frozen-client"} <= {path.name for path in out.glob("*")}:  # both run
        assert parent.poll() is None
        time.sleep(0.05)
    children = parent.children(recursive=True)
    parent.send_signal(signal.SIGINT)
    time.sleep(0.1)  # the runs have not been told of the first yet
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "leansplit: aborted" in said and "Traceback" not in said and "FAILED" not in said
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert [path.name for path in out.iterdir()] == ["experiment.toml"]


@whole_grid
def test_processes_end_with_a_comparison_that_is_killed(tmp_path):
    parent = start_endless_comparison(tmp_path)
    while len(children := parent.children(recursive=True)) < 3:  # two runs, a resource tracker
        assert parent.poll() is None
        time.sleep(0.05)
    time.sleep(5)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_runs_come_in_the_order_they_were_planned(tmp_path, monkeypatch):
    from leansplit.experiments import resume
    from leansplit.experiments import run_all as module
    from leansplit.experiments.experiment import load_experiment

    def backwards(planned_runs, out_dir, **options):
        return reversed(list(resume.attempt_all(planned_runs, out_dir, **options)))

    monkeypatch.setattr(module, "attempt_all", backwards)
    done = module.run_all(
        load_experiment(planned(tmp_path)).runs,
        tmp_path / "out",
        show_progress=lambda title: contextlib.nullcontext(lambda progress: None),
        say=lambda line: None,
    )
    assert [run.result.method for run in done.runs] == ["sflv1", "frozen", "fedavg"]
