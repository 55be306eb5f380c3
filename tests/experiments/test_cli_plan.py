"""The plan command: tables, JSON, figures, and one line for every mistake."""

import json
import sys

import pytest
import torch
from torch import nn

from leansplit.experiments import cli
from leansplit.models import registry
from tests.language import config_json

CNN = ("--model", "cifar-cnn", "--batch-size", "2", "--rounds", "3", "--image", "3x16x16")
DEVICE = ("--uplink", "10Mbit", "--downlink", "50Mbit", "--latency", "40ms", "--flops", "50G")


@pytest.fixture
def plan(monkeypatch, capsys):
    def run(*arguments, columns="200"):
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys, "argv", ["leansplit", "plan", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_tables_for_people(plan):
    code, out, err = plan("ho-sfl,sflv2", *CNN, *DEVICE, "--memory", "1MiB")
    assert code == 0, err
    for text in (
        "HO-SFL at cut relu2",
        "3 x rule",
        "perturbation",
        "gradients",
        "fits",
        "up: scalars",
    ):
        assert text in out
    assert "recommendation: 2 of 2 plans fit in 1.00 MiB" in out
    assert "exchanges: leave probe_ahead=false for HO-SFL at cut relu2: one exchange a round" in out


def test_values_for_programs(plan):
    code, out, err = plan("ho-sfl", *CNN, *DEVICE, "--set", "probe.num_perturbations=3", "--json")
    assert code == 0, err
    [found] = json.loads(out)["plans"]
    assert found["traffic"]["scalars"]["uplink_bytes"] == 3 * 20 * 3 * 4
    assert sum(found["peak_memory"].values()) == found["peak_memory_bytes"]
    around = 2 * 0.04  # set-up and last update
    assert found["run_s"] - around == pytest.approx(3 * found["step_s"], rel=0.2)
    assert json.loads(out)["recommendation"]["method"] == "ho-sfl"
    assert json.loads(out)["exchanges"]["latency_saved_s"] == pytest.approx(0.04)


def test_sweep_of_a_configuration_file(plan, tmp_path):
    (tmp_path / "tiny.json").write_text(config_json("llama"))
    arguments = ("--model", tmp_path / "tiny.json", "--length", "6", "--batch-size", "2")
    out_dir = tmp_path / "out"
    code, out, err = plan("frozen,sflv2", *arguments, "--sweep-cuts", "--out", out_dir)
    assert code == 0, err
    assert {path.name for path in out_dir.iterdir()} == {
        "plan.json", "plan_cuts.png", "plan_cuts.svg",
    }  # fmt: skip
    plans = json.loads((out_dir / "plan.json").read_text())["plans"]
    assert [p["cut_layer"] for p in plans] == ["1", "2", "3"] * 2
    assert "recommendation" in out


def test_shapes_of_a_task(plan):
    code, out, err = plan("sflv2", "--task", "digits", "--json")
    assert code == 0, err
    assert json.loads(out)["plans"][0]["client_parameters"] == 664


def test_by_the_conventions_of_a_table(plan):
    code, out, err = plan("sflv2,heron-sfl", *CNN, "--conventions", "heron", "--json")
    assert code == 0, err
    document = json.loads(out)
    by = document["conventions"]["heron"]
    assert by["sflv2"]["memory_bytes"] > by["sflv2"]["memory_without_copies"]
    assert by["heron-sfl"]["flops"] == document["plans"][1]["step_flops_by_3x_rule"] / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ho-sfl", *CNN, "--memory", "2gib"), "did you mean 2GiB?"),
        (("ho-sfl", *CNN, "--memory", "2"), "--memory needs a unit"),
        (("ho-sfl", *CNN, "--memory", "0.1B"), "--memory must be at least 1B"),
        (("ho-sfl", *CNN, "--cut", ""), "--cut needs the name of a layer"),
        (
            ("ho-sfl", "--model", "absent.json"),
            "cannot read the configuration absent.json: No such",
        ),
        (("ho-sfl", "--model", config_json("llama"), "--classes", "0"), "classes must be at least"),
        (("ho-sfl", "--model", config_json("llama"), "--cut", "9"), "unknown cut layer '9'"),
        (("ho-sfl", *CNN, "--uplink", "10Mbit"), "no --downlink and no --latency and no --flops"),
        (("ho-sfl", *CNN, "--cut", "nope"), "unknown cut layer 'nope'"),
        (("ho-sfl", *CNN, "--cut", "relu2", "--sweep-cuts"), "leave out --cut"),
        (("ho-sfl", "--model", "cifar-cnn", "--image", "32x32"), "--image takes"),
        (("ho-sfl",), "name a model"),
        (("ho-sl", *CNN), "unknown method 'ho-sl'; did you mean 'ho-sfl'"),
        (("ho-sfl", "--model", '{"model_type": "t5"}'), "no family has this type"),
        (("sflv2", *CNN, "--set", "probe.num_perturbations=2"), "does not use"),
        (("sflv2,ho-sfl", *CNN, "--set", "nonsense=2"), "unknown key 'nonsense'"),
        (("sflv2", *CNN, "--conventions", "theirs"), "unknown conventions"),
        (("ho-sfl", *CNN, "--length", "5"), "--length does nothing here: cifar-cnn takes images"),
        (("ho-sfl", "--model", config_json("llama"), "--image", "3x8x8"), "the model takes texts"),
        (
            ("ho-sfl", "--model", config_json("gpt2"), "--outputs", "tokens", "--classes", "5"),
            "--classes does nothing here",
        ),
        (("ho-sfl", "--task", "digits", "--image", "3x8x8"), "has shapes of its own"),
        (("ho-sfl", "--model", "resnet81"), "did you mean 'resnet18'?"),
        (
            ("ho-sfl", "--model", config_json("llama", hidden_size=15, head_dim=None)),
            "the model configuration",
        ),
        (("ho-sfl", "--model", config_json("gpt2", n_head=5)), "no model can be built"),
        (
            ("ho-sfl", "--model", config_json("llama", num_hidden_layers=1), "--sweep-cuts"),
            "the model has no cut",
        ),
        (
            ("ho-sfl", *CNN, "--uplink", "1e400Mbit", *DEVICE[2:]),
            "--uplink must be finite and above 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes(plan, arguments, message):
    code, out, err = plan(*arguments)
    assert code == 2 and not out
    assert message in err and len(err.splitlines()) == 1


class Choosy(nn.Module):
    def forward(self, x):
        return x[x > 0].unique()


class AsksAtOnce(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.linspace(0, 1, 3)[1].item()


class LeavesTorch(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones(4)  # no buffer

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Choosy, "the operation aten._unique2.default cannot be followed"),
        (AsksAtOnce, "it fails in AsksAtOnce (RuntimeError: Tensor.item() cannot be called on"),
        (LeavesTorch, "it fails in LeavesTorch (RuntimeError"),
        (lambda: nn.Linear(5, 4), "it fails in Linear (RuntimeError"),
        (Scaled, ""),
    ],
    ids=["choosy", "asks at once", "leaves torch", "wrong shape", "tensor that is no buffer"],
)
def test_a_model_that_cannot_be_followed_names_the_operation(plan, monkeypatch, layer, message):
    def build(input_shape, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 4), layer(), nn.Linear(4, num_classes))

    monkeypatch.setitem(registry._specs, "choosy", None)  # forgotten afterwards
    del registry._specs["choosy"]
    registry.register_model("choosy", build, description="Odd.", default_cut_layer="2")
    code, out, err = plan("ho-sfl", "--model", "choosy", "--image", "3x16x16")
    if message:
        assert code == 2 and not out and len(err.splitlines()) == 1
        assert message in err
    else:
        assert code == 0, err


def test_a_method_without_a_cut_is_planned_once(plan):
    code, out, err = plan("fedavg,sflv2", *CNN, *DEVICE, "--sweep-cuts", "--json")
    assert code == 0, err
    methods = [found["method"] for found in json.loads(out)["plans"]]
    assert methods.count("fedavg") == 1 and methods.count("sflv2") == 14
    assert "15 of 15 plans fit" in json.loads(out)["recommendation"]["reason"]


def test_tables_in_a_pipe_keep_their_digits(plan, monkeypatch):
    code, out, _ = plan("ho-sfl", *CNN, *DEVICE, "--sweep-cuts", columns=None)
    assert code == 0 and "…" not in out and "conv2" in out
    code, out, _ = plan("ho-sfl", *CNN, *DEVICE, "--sweep-cuts", columns="60")
    assert code == 0 and "…" not in out
