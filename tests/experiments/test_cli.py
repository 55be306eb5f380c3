"""The command: what it prints, what it leaves behind, and one line for every mistake."""

import json
import os
import signal
import tomllib

import pandas as pd
import pytest

from leansplit.errors import UserError
from leansplit.experiments import command_line
from leansplit.experiments.command_line import parse_faults, parse_names
from leansplit.experiments.experiment import load_experiment
from leansplit.experiments.key_reference import key_rows
from leansplit.server_app.methods import METHODS

SMALL = [
    *("--workers", "-1"),
    *("--clients", "6"),
    *("--cohort", "2"),
    *("--rounds", "3"),
    *("--set", "task_options.max_train=60"),
    *("--set", "task_options.max_test=20"),
]


@pytest.fixture
def leansplit(run_command):
    """Run the command in this process; returns (exit code, standard output, standard error)."""
    return run_command


def test_run_leaves_everything_behind(leansplit, tmp_path):
    code, out, err = leansplit("run", "ho-sfl", *SMALL, "--out", tmp_path, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["status"] == "completed"
    assert result["rounds_completed"] == 3
    assert result["client_backwards"] == 0 and result["client_forwards"] > 0
    assert result["client_step_flops"] > 0 and result["client_peak_memory_bytes"] > 0
    assert json.loads((tmp_path / "result.json").read_text()) == result
    ledger = pd.read_parquet(tmp_path / "ledger.parquet")
    assert ledger["bytes"].sum() == result["uplink_bytes"] + result["downlink_bytes"]
    rounds = pd.read_parquet(tmp_path / "rounds.parquet")
    assert rounds["round"].tolist() == [0, 1, 2, 3]
    assert rounds["accuracy"].iloc[-1] == result["final_accuracy"]


def test_client_of_ho_sfl_needs_less_memory_than_that_of_sfl(leansplit, tmp_path):
    peaks = {}
    for method in ("ho-sfl", "sflv1", "frozen"):
        arguments = ("--batch-size", 32, "--out", tmp_path / method, "--json")
        code, out, err = leansplit("run", method, *SMALL, *arguments)
        assert code == 0, err
        peaks[method] = json.loads(out)["client_peak_memory_bytes"]
    assert peaks["ho-sfl"] < peaks["sflv1"]


def test_run_stops_at_its_budget_of_samples(leansplit, tmp_path):
    arguments = ("--samples", 20, "--rounds", 50, "--batch-size", 5)
    code, out, _ = leansplit("run", "frozen", *SMALL, *arguments, "--out", tmp_path, "--json")
    result = json.loads(out)
    assert code == 0 and result["samples_seen"] == 20 and result["rounds_completed"] == 2
    rounds = pd.read_parquet(tmp_path / "rounds.parquet")
    assert rounds["samples_seen"].iloc[-1] == 20  # evaluated where it ended


EXPERIMENT = """
title = "Small"
seeds = [0, 1]
[shared]
workers = -1
clients = 6
cohort = 2
rounds = 4
task_options.max_train = 60
task_options.max_test = 20
[[methods]]
method = "ho-sfl"
[[methods]]
method = "sflv1"
[[methods]]
method = "frozen"
"""


def test_compare_summarises_and_skips_what_is_done(leansplit, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(EXPERIMENT)
    code, _, err = leansplit("compare", file, "--out", tmp_path / "out")
    assert code == 0, err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "summary.md",
        "summary.csv",
        "accuracy_vs_samples.png",
        "accuracy_vs_bytes.svg",
        "partition.png",
        "report.html",
        "experiment.toml",
        "ho-sfl",
        "sflv1",
        "frozen-client",
    } <= names
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary["method"].tolist() == ["ho-sfl", "sflv1", "frozen"]
    assert (summary["num_completed"] == 2).all()
    code, _, err = leansplit("compare", file, "--out", tmp_path / "out")
    assert code == 0 and err.count("done before") == 6


def test_compare_runs_the_controls_of_each_seed_first(leansplit, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(EXPERIMENT)
    code, _, err = leansplit(
        "compare", file, "--out", tmp_path / "out", "--methods", "ho-sfl,sflv1"
    )
    assert code == 0, err
    lines = [line for line in err.splitlines() if "accuracy" in line and line.startswith("[")]
    assert [line.split("] ")[1].split(":")[0] for line in lines] == [
        "SFLV1, seed 0",
        "HO-SFL, seed 0",
        "SFLV1, seed 1",
        "HO-SFL, seed 1",
    ]
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary["method"].tolist() == ["ho-sfl", "sflv1"]  # tables keep the file's order
    code, _, err = leansplit("compare", file, "--methods", "sflv3")
    assert code == command_line.EXIT_USER_ERROR and "did you mean 'sflv1'" in err


def test_faults_are_settings():
    assert parse_faults("drop=0.1, die=0.02") == {"faults.drop": "0.1", "faults.die": "0.02"}
    assert parse_faults(None) == {}
    with pytest.raises(UserError, match=r"--faults takes rates .*, got 'drop'"):
        parse_faults("drop")


def test_labels_with_commas_can_be_named(tmp_path):
    file = tmp_path / "small.toml"
    row = "[[methods]]\nmethod = 'ho-sfl'\n"
    file.write_text(f"{row}{row}label = 'HO-SFL, P = 2'\n[[methods]]\nmethod = 'frozen'")

    def labels(text):
        return [row.label for row in load_experiment(file, methods=parse_names(text)).rows]

    assert labels("HO-SFL, P = 2,frozen") == ["HO-SFL, P = 2", "Frozen client"]
    assert labels("frozen,HO-SFL") == ["HO-SFL", "Frozen client"]
    assert labels("ho-sfl") == ["HO-SFL", "HO-SFL, P = 2"]
    with pytest.raises(UserError, match="no method 'P = 3'"):
        labels("HO-SFL, P = 3")


def test_compare_reruns_what_changed_and_says_what(leansplit, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(EXPERIMENT.replace("seeds = [0, 1]", "seeds = [0]"))
    arguments = ("compare", file, "--out", tmp_path / "out")
    assert leansplit(*arguments)[0] == 0
    result = tmp_path / "out" / "sflv1" / "seed-0" / "result.json"
    failed = json.loads(result.read_text()) | {"status": "failed"}
    result.write_text(json.dumps(failed))
    (tmp_path / "out" / "frozen-client" / "seed-0" / "result.json").write_text("{}")
    code, _, err = leansplit(*arguments, "--set", "probe.num_perturbations=3")
    assert code == 0, err
    assert "its configuration changed (probe.num_perturbations: 5 -> 3); runs again" in err
    assert "SFLV1, seed 0: it failed; runs again" in err
    assert "not a leansplit result" in err and "done before" not in err
    assert "Traceback" not in err


def test_report_rebuilds_what_compare_wrote(leansplit, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(EXPERIMENT.replace("seeds = [0, 1]", "seeds = [0]"))
    out = tmp_path / "out"
    assert leansplit("compare", file, "--out", out)[0] == 0
    before = {name: (out / name).read_bytes() for name in ("summary.md", "report.html")}
    for name in before:
        (out / name).unlink()
    code, shown, err = leansplit("report", out)
    assert code == 0 and "HO-SFL" in shown, err
    assert {name: (out / name).read_bytes() for name in before} == before
    code, _, err = leansplit("report", tmp_path / "nothing")
    assert code == command_line.EXIT_USER_ERROR and "no folder" in err


def test_sweep_writes_tables_and_report_rebuilds_them(leansplit, tmp_path):
    arguments = ["sweep", "--methods", "ho-sfl,frozen", "--over", "P=1,2", "--out", tmp_path]
    for key in ("workers=-1", "clients=6", "cohort=2", "rounds=2", "task_options.max_train=60"):
        arguments += ["--set", key]
    code, shown, err = leansplit(*arguments)
    assert code == 0 and "HO-SFL" in shown, err
    before = (tmp_path / "report.html").read_bytes()
    assert leansplit("report", tmp_path)[0] == 0
    assert (tmp_path / "report.html").read_bytes() == before
    elsewhere = tmp_path / "elsewhere"
    code, _, err = leansplit("sweep", "digits", "--over", "coort=1,2", "--out", elsewhere)
    assert code == command_line.EXIT_USER_ERROR and "did you mean 'cohort'" in err
    code, _, err = leansplit(
        "sweep", "digits", "--over", "cut_layer=pool2,pool9", "--out", elsewhere
    )
    assert code == command_line.EXIT_USER_ERROR and "pool2" in err
    assert not elsewhere.exists()


TUNING = """
[tuning]
max_settings = 4
max_extensions = 0
zeroth_client = [{ name = "sgd", lr = [0.01, 0.1] }]
run.rounds = 5
"""


def test_tune_writes_what_it_chose_and_resumes(leansplit, tmp_path):
    file = tmp_path / "small.toml"
    file.write_text("# mine\n" + EXPERIMENT.replace("[shared]", TUNING + "[shared]"))
    arguments = ("tune", file, "--out", tmp_path / "out", "--write", "--methods", "ho-sfl,frozen")
    code, out, err = leansplit(*arguments)
    assert code == 0, err
    assert "HO-SFL" in out and "lies at the edge" in out
    table = pd.read_csv(tmp_path / "out" / "tuning.csv")
    assert table.groupby("method", sort=False).size().to_dict() == {"ho-sfl": 4, "frozen": 4}
    best = table[table["is_best"]].set_index("method")
    written = tomllib.loads(file.read_text())
    assert file.read_text().startswith("# mine\n")
    by_method = {entry["method"]: entry for entry in written["methods"]}
    assert by_method["ho-sfl"]["client"]["lr"] == best.loc["ho-sfl", "client.lr"]
    assert by_method["frozen"]["server"]["lr"] == best.loc["frozen", "server.lr"]
    assert "client" not in by_method["sflv1"]
    assert "For the others: not recorded." in written["learning_rates"]
    code, _, err = leansplit(*arguments)
    # 4 settings, and the 3 best again on 2 seeds, of each method
    assert code == 0 and err.count("done before") == 20  # what was written changes no tuning run
    assert leansplit("compare", file, "--out", tmp_path / "compared", "--seeds", 0)[0] == 0
    summary = (tmp_path / "compared" / "summary.md").read_text()
    assert all(line in summary for line in written["learning_rates"].splitlines())


def test_tune_fails_where_a_method_has_no_setting_that_works(leansplit, tmp_path):
    file = tmp_path / "small.toml"
    bad = TUNING + "server.lr = [2e38, 3e38]\n[shared]"
    file.write_text(EXPERIMENT.replace("[shared]", bad))
    before = file.read_text()
    arguments = ("--out", tmp_path / "out", "--write", "--methods", "frozen")
    code, out, err = leansplit("tune", file, *arguments)
    assert code == command_line.EXIT_FAILED, err
    assert "no setting that worked" in err and "non-finite" in out + err
    assert "Traceback" not in err and file.read_text() == before


def test_compare_keeps_going_when_a_run_fails(leansplit, tmp_path):
    file = tmp_path / "small.toml"
    broken = (
        '[[methods]]\nmethod = "ho-sfl"\nlabel = "Broken"\nserver.lr = 3e38\nclient.lr = 3e38\n'
    )
    file.write_text(EXPERIMENT.replace("seeds = [0, 1]", "seeds = [0]") + broken)
    code, _, err = leansplit("compare", file, "--out", tmp_path / "out")
    assert code == command_line.EXIT_FAILED
    assert "non-finite" in err and "1 of 4 runs failed" in err
    assert "Traceback" not in err
    assert (tmp_path / "out" / "summary.md").exists()


@pytest.mark.parametrize("command", ["methods", "tasks", "keys"])
def test_lists(leansplit, command):
    code, out, _ = leansplit(command)
    expected = {"methods": "ho-sfl", "tasks": "digits-cnn", "keys": "probe.num_perturbations"}
    assert code == 0 and expected[command] in out


def test_all_keys_are_listed_once_with_the_methods_that_have_them():
    rows = {key: (default, meaning) for key, default, meaning in key_rows()}
    assert len(rows) == len(key_rows())
    of_methods = {row[0] for method in METHODS for row in key_rows(method)}
    assert of_methods <= rows.keys()
    assert rows["tau"][1].endswith("[mu-splitfed]") and rows["privacy.clip"][0] == "0.0"
    assert rows["local_steps"][0] == "by method"  # 5 for HO-FL, 1 for SFLV1


MISTAKES = {
    "method": (["ho-slf"], "did you mean 'ho-sfl'"),
    "task": (["ho-sfl", "--task", "digit"], "did you mean 'digits'"),
    "key": (["ho-sfl", "--set", "client.ir=0.1"], "did you mean"),
    "key without value": (["ho-sfl", "--set", "client.lr"], "key=value"),
    "out as a key": (["ho-sfl", "--set", "out=here"], "--out"),
    "momentum of adamw": (
        ["ho-sfl", "--set", "client.name=adamw", "--set", "client.momentum=0.9"],
        "error: client: adamw has no momentum",
    ),
    "type": (["ho-sfl", "--set", "clients=many"], "clients cannot be 'many'"),
    "number that is true": (["ho-sfl", "--set", "client.lr=true"], "client.lr cannot be 'true'"),
    "seed": (["ho-sfl", "--seed", "-1"], "seed must be from 0"),
    "unused key": (["frozen", "--set", "client.lr=0.1"], "does not use 'client.lr'"),
    "cut": (["ho-sfl", "--set", "cut_layer=pool9"], "pool2"),
    "model": (["ho-sfl", "--set", "model=resnet-18"], "resnet18"),
    "model option": (["ho-sfl", "--set", "model_options.chanels=3"], "channels"),
    "task option": (["ho-sfl", "--set", "task_options.max_trian=3"], "max_train"),
    "cohort": (["ho-sfl", "--clients", "5", "--cohort", "6"], "cohort of 6"),
    "more clients than samples": (["ho-sfl", "--clients", "5000"], "1437"),
    "mu": (["ho-sfl", "--set", "probe.perturbation_scale=0"], "above 0"),
    "P": (["ho-sfl", "--set", "probe.num_perturbations=0"], "at least 1"),
    "lr": (["ho-sfl", "--lr", "-1"], "client.lr must be a finite number above 0, got -1"),
    "lr of a method without one at clients": (["frozen", "--lr", "-1"], "error: server.lr must"),
    "lr of the server": (["sflv1", "--set", "server.lr=0"], "error: server.lr must be"),
    "momentum of the server": (["sflv1", "--set", "server.momentum=2"], "server.momentum must be"),
    "head": (["cse-fsl", "--set", "auxiliary.num_blocks=0"], "error: auxiliary.num_blocks must"),
    "alignment": (["fsl-sage", "--set", "alignment.period=0"], "error: alignment.period must be"),
    "alpha": (["ho-sfl", "--alpha", "0"], "alpha"),
    "target": (["ho-sfl", "--target-accuracy", "80"], "must be a fraction"),
    "megabytes": (["ho-sfl", "--megabytes", "-1"], "megabytes must be"),
    "rounds": (["ho-sfl", "--rounds", "0"], "rounds must be at least 1"),
    "data": (["ho-sfl", "--task", "images", "--set", "task_options.data_path=/nowhere"], "nowhere"),
    "packed fedavg": (["fedavg", "--set", "clients_per_node=2"], "clients_per_node"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(leansplit, tmp_path, mistake):
    arguments, hint = MISTAKES[mistake]
    code, _, err = leansplit("run", *arguments, "--out", tmp_path / "runs" / "mine")
    last = err.strip().splitlines()[-1]
    assert code == command_line.EXIT_USER_ERROR
    assert last.startswith("leansplit: error: ") and hint in last, last
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # what is refused leaves no folder behind


def test_a_run_says_whose_results_it_replaces(leansplit, tmp_path):
    for arguments, expected in ((), ""), (("--lr", "0.2"), "client.lr: 0.1 -> 0.2"):
        code, _, err = leansplit("run", "ho-sfl", *SMALL, *arguments, "--out", tmp_path)
        assert code == 0 and expected in err and ("replaced" in err) == bool(expected), err


def test_unwritable_output_is_found_before_anything_runs(leansplit, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, _, err = leansplit("run", "ho-sfl", *SMALL, "--out", blocked / "runs")
    assert code == command_line.EXIT_USER_ERROR
    assert "cannot write to the output folder" in err and "Traceback" not in err


def test_wrong_columns_name_those_that_exist(leansplit, tmp_path):
    for split in ("train", "test"):
        table = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
        table.to_parquet(tmp_path / f"{split}.parquet")
    arguments = ("--task", "images", "--set", f"task_options.data_path={tmp_path}")
    code, _, err = leansplit("run", "ho-sfl", *arguments, "--out", tmp_path / "out")
    assert code == command_line.EXIT_USER_ERROR
    assert "text" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("[[methods]]\nmethod = 'ho-slf'", "did you mean 'ho-sfl'"),
        ("seeds = [0, 0]\n[[methods]]\nmethod = 'ho-sfl'", "seeds must differ"),
        ("title = 'x'", "names no methods"),
        ("tilte = 'x'", "did you mean 'title'"),
        ("[[methods]\n", "cannot read experiment"),
        ("[[methods]]\nmethod = 'ho-sfl'\nlabel = '★'", "needs a letter or digit"),
        ("[shared]\nmegabytes = -1\n[[methods]]\nmethod = 'ho-sfl'", "megabytes must be"),
        ("[[methods]]\nmethod = 'ho-sfl'\n[[methods]]\nmethod = 'ho-sfl'", "own label"),
        ("[[methods]]\nmethod = 'frozen'\nclient.lr = 1.0", "does not use"),
        (
            "[[methods]]\nmethod = 'ho-sfl'\nprobe.num_perturbations = 0",
            "error: HO-SFL: probe.num_p",
        ),
        ("[shared]\nrounds = true\n[[methods]]\nmethod = 'frozen'", "rounds cannot be True"),
        ("[shared]\ntau = 4\n[[methods]]\nmethod = 'frozen'", "no method of"),
        ("seeds = 3\n[[methods]]\nmethod = 'frozen'", "must be a list of whole numbers, got 3"),
        ("plugins = 3\n[[methods]]\nmethod = 'frozen'", "must be a list of files or modules"),
        ("shared = 3\n[[methods]]\nmethod = 'frozen'", "must be a table of run keys, got 3"),
        ("target_accuracy = 'x'\n[[methods]]\nmethod = 'frozen'", "must be a fraction such as"),
        ("target_accuracy = 55\n[[methods]]\nmethod = 'frozen'", "in (0, 1], got 55"),
        ("methods = 2", "must be [[methods]] tables, got 2"),
        ("shared.cut_layer = 'pool9'\n[[methods]]\nmethod = 'frozen'", "pool2"),
        ("shared.clients = 5000\n[[methods]]\nmethod = 'frozen'", "1437"),
    ],
)
def test_mistakes_in_an_experiment_file(leansplit, tmp_path, content, hint):
    file = tmp_path / "experiment.toml"
    file.write_text(content)
    code, _, err = leansplit("compare", file, "--out", tmp_path / "runs" / "out")
    assert code == command_line.EXIT_USER_ERROR and hint in err, err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("[tuning]\nseed = 0\n[[methods]]\nmethod = 'frozen'", "the comparison uses seed 0"),
        ("[tuning]\nsed = 0\n[[methods]]\nmethod = 'frozen'", "did you mean 'seed'"),
        ("[tuning]\nclient.lr = 0.1\n[[methods]]\nmethod = 'frozen'", "list of rates"),
        ("[tuning]\nmax_settings = 9\n[[methods]]\nmethod = 'ho-sfl'", "shared equally"),
        ("[tuning]\nrun.sampels = 9\n[[methods]]\nmethod = 'ho-sfl'", "did you mean 'samples'"),
        ("[[methods]]\nmethod = 'frozen'\ntuning.client.lr = [1]", "does not use 'client.lr'"),
        ("title = 'x'", "names no methods"),
        ("shared.cut_layer = 'pool9'\n[[methods]]\nmethod = 'frozen'", "pool2"),
    ],
)
def test_mistakes_in_tuning_are_found_before_a_run(leansplit, tmp_path, content, hint):
    file = tmp_path / "experiment.toml"
    file.write_text(content)
    code, _, err = leansplit("tune", file, "--out", tmp_path / "runs" / "out")
    assert code == command_line.EXIT_USER_ERROR and hint in err, err
    assert list(tmp_path.iterdir()) == [file]


def test_missing_experiment_names_the_shipped_ones(leansplit):
    code, _, err = leansplit("compare", "digit")
    assert code == command_line.EXIT_USER_ERROR and "did you mean 'digits'" in err


def test_shipped_experiments_are_valid():
    from leansplit.experiments.experiment import load_experiment, shipped_experiments

    assert "digits" in shipped_experiments()
    for path in shipped_experiments().values():
        assert load_experiment(path).runs


def test_ctrl_c_keeps_what_was_measured(leansplit, tmp_path, monkeypatch):
    from leansplit.server_app.recording import Recorder

    original = Recorder.on_round

    def press_ctrl_c(self, report):
        if report.round == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, report)

    monkeypatch.setattr(Recorder, "on_round", press_ctrl_c)
    code, _, err = leansplit("run", "ho-sfl", *SMALL, "--rounds", 1000, "--out", tmp_path)
    assert code == command_line.EXIT_INTERRUPTED, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert 3 <= result["rounds_completed"] < 1000
    assert result["final_accuracy"] is not None
    assert "Traceback" not in err
