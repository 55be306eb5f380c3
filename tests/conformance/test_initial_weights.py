"""Every method from weights in a file, and everything that can be wrong with such a file."""

import pytest
import safetensors.torch
import torch

from leansplit.errors import UserError
from leansplit.experiments.preflight import check_run
from leansplit.models import weights_digest
from leansplit.server_app.config import run_config
from leansplit.server_app.methods import METHODS
from leansplit.server_app.outputs import MODEL_FILE, write_outcome
from leansplit.server_app.results import config_hash

FROZEN_STATISTICS = {
    "model": "resnet18",
    "model_options.width": 8,
    "model_options.norm": "batch_frozen",
}


@pytest.fixture
def pretrained(configure, run_in_process, tmp_path):
    """(path of an earlier run's model, that run)."""
    earlier = run_in_process(configure("sflv2", rounds=2, seed=5))
    write_outcome(tmp_path, earlier, command=[], started_at="")
    return tmp_path / MODEL_FILE, earlier


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_goes_on_from_the_weights_of_another(
    method, pretrained, configure, run_in_process, reference_checksum
):
    path, earlier = pretrained
    config = configure(method, rounds=3, initial_weights=str(path))
    outcome = run_in_process(config)
    assert outcome.status == "completed" and outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(config)
    for measured in ("accuracy", "loss"):
        assert outcome.rounds[0][measured] == earlier.rounds[-1][measured]
    assert outcome.final_model_checksum != reference_checksum(configure(method, rounds=3))


def test_clients_load_what_nobody_sends(configure, run_in_process, tmp_path, reference_checksum):
    """Frozen statistics come from the file on both sides; set-up compares them."""
    state = run_in_process(configure("frozen", rounds=1, **FROZEN_STATISTICS)).final_state
    for name, value in state.items():
        if name.endswith("running_mean"):
            state[name] = value + 0.5
    safetensors.torch.save_file(state, tmp_path / "pretrained.safetensors")
    weights = {"initial_weights": str(tmp_path / "pretrained.safetensors")}
    config = configure("ho-sfl", "sgd", rounds=2, **FROZEN_STATISTICS, **weights)
    outcome = run_in_process(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.final_model_checksum == reference_checksum(config)


def test_a_relative_path_is_the_same_for_every_process(pretrained, configure, monkeypatch):
    path, _ = pretrained
    monkeypatch.chdir(path.parent)
    config = configure("sflv1", initial_weights=path.name)
    assert config.workload().initial_weights == str(path)
    assert config.initial_weights == path.name


def test_other_weights_are_another_run(pretrained, configure):
    path, earlier = pretrained
    before = configure("sflv1", initial_weights=str(path))
    assert before.initial_weights_digest == weights_digest(path)
    again = configure("sflv1", initial_weights=str(path))
    assert config_hash(before.to_dict()) == config_hash(again.to_dict())
    changed = {name: value + 1 for name, value in earlier.final_state.items()}
    safetensors.torch.save_file(changed, path)
    after = configure("sflv1", initial_weights=str(path))
    assert config_hash(before.to_dict()) != config_hash(after.to_dict())
    with pytest.raises(UserError, match="not those that this run was configured with"):
        check_run(before)


def refused(config_of, message):
    with pytest.raises(UserError, match=message) as caught:
        check_run(config_of())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_that_is_not_there(configure, tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        refused(
            lambda path=path: configure("frozen", initial_weights=str(path)),
            f"cannot read initial weights '{path}'",
        )


def test_a_file_of_another_kind(configure, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04 not weights")
    path = str(tmp_path / "model.bin")
    refused(lambda: configure("fedavg", initial_weights=path), "no safetensors file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.weight"), "do not fit: .* missing conv1.weight;"),
        (lambda s: s.update({"head.bias": torch.ones(1)}), "unexpected head.bias;"),
        (
            lambda s: s.update({"fc1.bias": torch.ones(3)}),
            r"wrong shape fc1.bias \(3,\), not \(10,\)",
        ),
    ],
)
def test_names_and_shapes_must_fit(change, message, pretrained, configure):
    path, earlier = pretrained
    state = dict(earlier.final_state)
    change(state)
    safetensors.torch.save_file(state, path)
    refused(lambda: configure("ho-sfl", initial_weights=str(path)), message)


def test_the_digest_is_found_out_and_not_given():
    with pytest.raises(UserError, match="unknown key 'initial_weights_digest'"):
        run_config("sflv1", {"initial_weights_digest": "0123456789abcdef"})
