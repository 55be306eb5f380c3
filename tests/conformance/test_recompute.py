"""SFLV1 and SFLV2 whose clients recompute: the same methods, with another client step."""

import pytest
import torch
from torch import nn

from leansplit.clients.app import split_client_app
from leansplit.errors import UserError
from leansplit.federated import SplitFedConfig
from leansplit.first_order import replayed_forwards
from leansplit.models import split_at
from leansplit.server_app.config import run_config
from leansplit.server_app.outputs import run_result
from leansplit.strategies import Deployment, SplitFedV1
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples

METHODS = ["sflv1", "sflv2"]


def recompute(configure, method, optimizer="momentum", **options):
    return configure(method, optimizer, client_backward="recompute", **options)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_recomputing_whole_batches_is_the_same_run_bit_for_bit(
    method, optimizer, configure, run_in_process, reference_checksum
):
    config = recompute(configure, method, optimizer, rounds=6)
    outcome = run_in_process(config)
    full = run_in_process(configure(method, optimizer, rounds=6))
    assert outcome.final_model_checksum == reference_checksum(config) == full.final_model_checksum
    assert outcome.ledger.by_kind() != {} and outcome.samples_seen == full.samples_seen

    def without_setup(run):  # the plan names the option
        return [entry for entry in run.ledger if entry.round > 0]

    assert without_setup(outcome) == without_setup(full)


@pytest.mark.parametrize("micro_batch", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_equal_the_reference_and_nearly_the_full_run(
    method, micro_batch, configure, run_in_process, reference_checksum
):
    config = recompute(configure, method, rounds=6, micro_batch=micro_batch)
    outcome = run_in_process(config)
    assert outcome.final_model_checksum == reference_checksum(config)
    full = run_in_process(configure(method, rounds=6))
    for name, value in full.final_state.items():
        torch.testing.assert_close(outcome.final_state[name], value, rtol=1e-3, atol=1e-4)


def test_residual_clients_recompute_too(configure, run_in_process, reference_checksum):
    deep = {"model": "resnet18", "model_options.width": 8, "cut_layer": "layer2", "batch_size": 16}
    config = recompute(configure, "sflv2", rounds=2, micro_batch=4, **deep)
    outcome = run_in_process(config)
    assert outcome.final_model_checksum == reference_checksum(config)
    full = run_in_process(configure("sflv2", rounds=2, **deep))
    frozen = run_in_process(configure("frozen", rounds=1, **deep))  # measures inference
    peak = outcome.client_costs.peak_memory_bytes
    assert peak < 0.5 * full.client_costs.peak_memory_bytes
    # Momentum and gradients: the client model twice more than inference holds it.
    weights = sum(4 * v.numel() for k, v in outcome.final_state.items() if k < "layer3")
    assert peak < 1.2 * frozen.client_costs.peak_memory_bytes + 2 * weights


def test_passes_and_flops_of_a_recomputing_client(configure, run_in_process):
    outcome = run_in_process(recompute(configure, "sflv1", rounds=2))
    full = run_in_process(configure("sflv1", rounds=2))
    result = run_result(outcome, command=[], started_at="")
    passes = 2 + replayed_forwards(6)  # digits-cnn is six layers below the cut
    assert result.client_forwards == round(passes * outcome.samples_seen)
    assert result.client_backwards == outcome.samples_seen
    assert outcome.client_costs.flops > full.client_costs.flops


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_backward": "recomputed"}, "should be 'full' or 'recompute'"),
        ({"client_backward": "recompute", "micro_batch": -1}, "at least 0, got -1"),
        ({"micro_batch": 4}, "micro_batch needs client_backward = recompute"),
    ],
)
def test_bad_settings_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        run_config("sflv1", options)
    assert "\n" not in str(caught.value)


def data(client_id):
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(client_id))
    return Examples(inputs, torch.tensor([0, 1, 0, 1, 0, 1]))


def run(layer, cut="1", **options):
    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return split_at(
                nn.Sequential(nn.Linear(4, 8), layer(), nn.Linear(8, 8), nn.Linear(8, 2)), cut
            )

    loss = nn.functional.cross_entropy
    config = SplitFedConfig(cohort_size=2, client_backward="recompute", **options)
    strategy = SplitFedV1(build(), loss, config, deployment=Deployment(num_clients=3))
    grid = InProcessGrid(split_client_app(build, data), 3)
    return strategy.start(grid, strategy.initial_arrays(), num_rounds=2)


@pytest.mark.parametrize(
    "layer", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(8, track_running_stats=False)]
)
def test_layers_that_see_the_whole_batch_refuse_micro_batches(layer):
    with pytest.raises(UserError, match=r"layer '1' .* set micro_batch to 0"):
        run(layer, micro_batch=2)
    run(layer)  # whole batches are fine
    run(layer, cut="0", micro_batch=2)  # so is the layer at the server


def test_layers_that_see_one_sample_take_micro_batches():
    run(lambda: nn.GroupNorm(2, 8), micro_batch=4)
    run(lambda: nn.Dropout(0.0), micro_batch=4)
