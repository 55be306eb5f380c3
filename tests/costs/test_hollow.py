"""A plan's step without values against the same step with them: FLOPs and peaks to the byte."""

import pytest
import torch
from torch import nn

from leansplit.costs import ClientStep, measure_step
from leansplit.costs.hollow import HollowTensors
from leansplit.errors import UserError
from leansplit.models import build_model, cut_layers, split_at
from leansplit.noise import draw_perturbation
from leansplit.server_app.client_costs import measure
from leansplit.server_app.config import run_config
from leansplit.server_app.methods import METHODS, is_used
from leansplit.tasks.task import cross_entropy
from tests.language import config_json
from tests.whole_grid import WHOLE_GRID

BATCH = 3
MODELS = {
    "cnn": ("cifar-cnn", (3, 16, 16), {}, ("conv1", "relu2", "fc1")),
    "resnet": ("resnet18", (3, 8, 8), {"width": 8}, ("stem", "layer1.0", "layer3")),
} | {
    family: ("language", (2, 6), {"source": config_json(family)}, ("1", "2", "3"))
    for family in ("gpt2", "opt", "llama")
}


def build(name, **device):
    registered, shape, options, _ = MODELS[name]
    return build_model(
        registered, input_shape=shape, num_classes=3, seed=0, options=options, **device
    )


def batch(name):
    registered, shape, *_ = MODELS[name]
    if registered != "language":
        return torch.ones(BATCH, *shape), torch.zeros(BATCH, dtype=torch.int64)
    tokens = torch.ones(BATCH, *shape, dtype=torch.int64)
    tokens[0, 1, -2:] = 0  # real batches have padding
    return tokens, torch.zeros(BATCH, dtype=torch.int64)


class Both:
    """Every model twice: with values, and without; each cut once."""

    def __init__(self):
        self.world = HollowTensors()
        self.real = {name: build(name) for name in MODELS}
        self.hollow = {name: self.world.emptied(build(name, device="meta")) for name in MODELS}
        self._cut = {}

    def cut_at(self, name, cut):
        if (name, cut) not in self._cut:
            real = split_at(self.real[name], cut)
            with self.world.entered():
                self._cut[name, cut] = split_at(self.hollow[name], cut), real
        return self._cut[name, cut]

    def costs(self, name, cut, config):
        """Return (predicted, measured): the same step without values, and with them."""
        spec, settings = METHODS[config.method], config.method_config()
        hollow, real = self.cut_at(name, cut)
        measured = measure(spec.client_step(settings, real, cross_entropy, *batch(name)))
        with self.world.entered():
            shapes = [torch.empty_like(tensor) for tensor in batch(name)]
            predicted = measure(spec.client_step(settings, hollow, cross_entropy, *shapes))
        for model in (self.real[name], self.hollow[name]):
            for parameter in model.parameters():
                parameter.grad = None
        return predicted, measured


@pytest.fixture(scope="module")
def both():
    return Both()


@pytest.fixture(scope="module")
def world(both):
    return both.world


SAME_STEP = ("sflv1", "zo-sfl", "fedzo")  # as sflv2, mu-splitfed, decomfl: the CNN will do
PAIRS = [
    (method, name)
    for method in METHODS
    for name in MODELS
    if WHOLE_GRID or name == "cnn" or method not in SAME_STEP
]


def cuts_of(method, name):
    """All three for the CNN; else one, so that every method and every model meets all three.

    All three for all in the whole grid.
    """
    cuts = MODELS[name][3]
    if not METHODS[method].is_split:
        return cuts[:1]
    turn = [*METHODS].index(method) + [*MODELS].index(name)
    return cuts if WHOLE_GRID or name == "cnn" else cuts[turn % 3 :][:1]


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_a_prediction_is_the_measurement_to_the_byte(method, name, both):
    # AdamW's many operations at every parameter are the same for all architectures.
    momentum = {"client.name": "sgd", "client.momentum": 0.9}
    optimizer = {"client.name": "adamw"} if name == "cnn" else momentum
    settings = {"batch_size": BATCH, "probe.num_perturbations": 3, "boundaries": ["cut"]}
    used = {key: value for key, value in (settings | optimizer).items() if is_used(method, key)}
    config = run_config(method, used)
    for cut in cuts_of(method, name):
        predicted, measured = both.costs(name, cut, config)
        assert predicted.flops == measured.flops > 0
        assert predicted == measured
        assert sum(measured.peak_memory.values()) == measured.peak_memory_bytes
        assert measured.peak_memory["weights"] > 0


OPTIONS = [
    ("sflv2", {"client_backward": "recompute", "micro_batch": 1}),
    ("sflv2", {"client.name": "sgd", "client.momentum": 0.9, "client.lifetime": "batch"}),
    ("ho-sfl", {"probe.direction": "sphere", "probe.estimator": "central"}),
    ("ho-sfl", {"probe_ahead": True, "micro_batch": 1}),
    ("heron-sfl", {"frozen_client": True}),
    ("heron-sfl", {"auxiliary.kind": "copy"}),
    ("cse-fsl", {"auxiliary.kind": "blocks", "local_steps": 2}),
    ("ho-fl", {"boundaries": ["none", "all"]}),
    ("decomfl", {"client.name": "adamw", "client.lifetime": "run"}),
]


@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
def test_options_are_predicted_too(method, options, both):
    config = run_config(method, {"batch_size": BATCH} | options)
    predicted, measured = both.costs("cnn", "relu2", config)
    assert predicted == measured


def test_noise_and_values_are_not_there(world):
    with world.entered():
        assert draw_perturbation(1, 5).shape == (5,)
        assert torch.ones(3).sum().item() == 1.0
        assert len(torch.ones(4).nonzero()) == 4
    assert draw_perturbation(1, 5).abs().sum() > 0


def test_an_empty_model_of_any_size_takes_no_memory():
    world = HollowTensors()
    wide = nn.Linear(1_000_000, 1_000_000, device="meta")  # 4 TB
    with world.entered():
        model = world.emptied(wide)
        x = torch.ones(2, 1_000_000)
        costs = measure_step(ClientStep(run=lambda: model(x), weights=list(model.parameters())))
    assert costs.peak_memory_bytes > 4e12
    assert costs.flops == 2 * 2 * 10**12


class Choosy(nn.Module):
    def forward(self, x):
        return x[x > 0].unique()


def test_what_depends_on_values_is_named(world):
    refused = pytest.raises(UserError, match=r"cannot be planned: the operation aten._unique2")
    with world.entered(), refused:
        Choosy()(torch.ones(3))


def test_cuts_of_an_empty_model_are_those_of_the_real_one(both):
    for name in ("cnn", "gpt2"):
        assert cut_layers(both.hollow[name]) == cut_layers(both.real[name])


def test_moments_and_weights_that_a_step_does_not_read_are_held():
    model = nn.Linear(10, 10)
    optimizer = torch.optim.AdamW(model.parameters())
    costs = measure_step(
        ClientStep(run=lambda: None, weights=list(model.parameters()), optimizers=[optimizer])
    )
    assert costs.peak_memory == {"weights": 440, "optimizer_state": 2 * 440 + 2 * 4}
