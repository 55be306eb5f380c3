import pytest
import torch
from torch import nn

from leansplit.errors import UserError
from leansplit.models import MODELS, build_model, cut_layers, register_model, registry

SHAPES = {"digits-cnn": (1, 8, 8), "cifar-cnn": (3, 32, 32), "resnet18": (3, 8, 8)}
NAMES = sorted(SHAPES)


def build(name, seed=0, **options):
    return build_model(name, input_shape=SHAPES[name], num_classes=10, seed=seed, options=options)


@pytest.fixture
def specs():
    """Take registrations back after the test."""
    before = dict(registry._specs)
    yield
    registry._specs.clear()
    registry._specs.update(before)


def test_what_is_registered():
    assert set(NAMES) <= set(MODELS)
    for name in NAMES:
        spec = MODELS[name]
        assert spec.name == name
        assert spec.description.endswith(".")
        assert "\n" not in spec.description
        assert spec.default_cut_layer in cut_layers(build(name))


def test_the_registry_cannot_be_written_to():
    with pytest.raises(TypeError):
        MODELS["mine"] = MODELS["resnet18"]
    with pytest.raises(TypeError):
        MODELS["resnet18"].options["norm"] = "none"


def test_options_are_the_builders_keyword_arguments_with_their_defaults():
    assert MODELS["resnet18"].options == {"norm": "group", "train_affine": True, "width": 64}
    assert MODELS["digits-cnn"].options == {
        "channels": (8, 8),
        "pool_after": (1, 2),
        "hidden": 0,
        "norm": "none",
        "activation": "tanh",
        "pooling": "average",
        "memory_format": "contiguous",
    }


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bits_and_others_differ_everywhere(name):
    first = build(name, seed=7).state_dict()
    torch.rand(3)  # the global generator has no say
    second, third = build(name, seed=7).state_dict(), build(name, seed=8).state_dict()
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key])
        if tensor.is_floating_point() and tensor.min() != tensor.max():
            assert not torch.equal(tensor, third[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_the_global_generator_is_neither_read_nor_moved(name):
    before = torch.get_rng_state()
    build(name)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_devices_are_not_reseeded(monkeypatch):
    def fail(*_):
        raise AssertionError("an accelerator was reseeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    monkeypatch.setattr(torch, "manual_seed", fail)
    build("digits-cnn")


def test_options_reach_the_builder():
    assert build("digits-cnn", hidden=0).fc1.out_features == 10
    assert any("running_mean" in key for key in build("resnet18", norm="batch_frozen").state_dict())
    assert build("cifar-cnn", channels=[4, 4, 4, 4]).conv1.out_channels == 4  # as TOML gives it


def test_registering_a_model(specs):
    def tiny(input_shape, num_classes, *, bias=True):
        return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], num_classes, bias=bias))

    spec = register_model("tiny", tiny, description="One layer.", default_cut_layer="0")
    assert MODELS["tiny"] is spec
    assert spec.options == {"bias": True}
    model = build_model(
        "tiny", input_shape=(2, 1, 1), num_classes=3, seed=0, options={"bias": False}
    )
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 2)]
    with pytest.raises(UserError, match="'tiny' is registered already; choose another name"):
        register_model("tiny", tiny, description="Again.", default_cut_layer="0")


def test_options_of_a_registered_model_need_defaults(specs):
    def demanding(input_shape, num_classes, *, depth):
        raise NotImplementedError

    with pytest.raises(UserError, match=r"give the options \['depth'\] .* a default"):
        register_model("demanding", demanding, description="x.", default_cut_layer="0")
    assert "demanding" not in MODELS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet-18"}, "unknown model 'resnet-18'; did you mean 'resnet18'"),
        ({"options": {"nrom": "group"}}, "has no option 'nrom'; did you mean 'norm'.* allowed: n"),
        ({"options": {"norm": "batch"}}, "unknown norm 'batch'"),
        ({"input_shape": (3, 4, 4)}, "an input of 4x4 is too small"),
        ({"input_shape": (32, 32)}, r"takes images .channels, height, width., but the inputs are"),
        ({"input_shape": (0, 32, 32)}, r"but the inputs are .0, 32, 32.; choose another"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_refusals(changes, message):
    given = {"name": "resnet18", "input_shape": (3, 8, 8), "num_classes": 10, "seed": 0} | changes
    with pytest.raises(UserError, match=message):
        build_model(given.pop("name"), **given)
