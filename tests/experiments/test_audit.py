"""The command leansplit audit, on digits."""

import dataclasses
import json

import pandas as pd
import pytest

from leansplit.errors import UserError
from leansplit.experiments import audit as auditing
from leansplit.experiments.audit import AuditConfig, audit, problems
from leansplit.experiments.audit_report import write_audit
from leansplit.experiments.cli_audit import audit as command
from leansplit.inversion import DecoderConfig, SearchConfig

QUICK = {"search": SearchConfig(steps=20), "decoder": DecoderConfig(steps=10), "samples": 3}
DIGITS = {"task": "digits", "task_options.max_train": 60, "task_options.max_test": 40}


def test_an_audit_repeats_and_leaves_files(tmp_path):
    config = AuditConfig(cuts=("flatten", "pool1"), noises=(0.0, 0.5), **QUICK)
    first = audit(config, DIGITS)
    again = dataclasses.replace(config, cuts=("pool1",))
    assert audit(again, DIGITS).findings == first.findings[2:]  # whatever else was attacked
    bare, noisy = first.findings[2:]
    assert bare.search.mse < first.baselines[auditing.MEAN].mse < noisy.search.mse * 2
    assert bare.search.mse < noisy.search.mse
    assert (bare.clip, bare.epsilon) == (0.0, float("inf")) and 0 < noisy.epsilon < 1000
    write_audit(first, tmp_path, ["leansplit", "audit"])
    rows = pd.read_csv(tmp_path / "audit.csv")
    assert len(rows) == 2 * 2 * 2 + 2
    values = json.loads((tmp_path / "audit.json").read_text())
    assert values["weights"] == "initial, drawn from seed 0"
    assert (tmp_path / "audit.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "a"}, "--noise takes numbers"),
        ({"noise": "-1"}, "noise takes finite numbers from 0"),
        ({"cut": ["pool9"]}, "pool9"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"samples": 5000}, "samples must be at most 1437"),
        ({"task": "sst2"}, "no attack is built"),
        ({"set_": ["client.lr=1"]}, "audit does not use 'client.lr'"),
        ({"weights": "nowhere.safetensors"}, "cannot read initial weights"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"task": "digits", "model": None, "cut": None, "noise": "0", "clip": 0.0, "samples": 8}
    given |= {"public": 2000, "uploads": 1, "delta": 1e-5, "weights": None, "seed": 0}
    given |= {"set_": None, "out": None, "as_json": False} | options
    if given["weights"] is not None:
        given["weights"] = tmp_path / given["weights"]
    with pytest.raises(UserError, match=message) as caught:
        command(**given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr("leansplit.costs.privacy.can_account", lambda: False)
    AuditConfig(cuts=("pool1",))
    with pytest.raises(UserError, match=r"pip install 'leansplit\[privacy\]'"):
        AuditConfig(cuts=("pool1",), noises=(0.1,))
    assert len(problems(AuditConfig(cuts=("pool1", "pool2")), DIGITS)) == 2
