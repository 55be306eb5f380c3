"""Auxiliary heads: shapes, where weights come from, and what cannot be built."""

import copy

import pytest
import torch
from torch import nn

from leansplit.errors import UserError
from leansplit.models import (
    AUXILIARY_KINDS,
    MODELS,
    AuxiliaryConfig,
    LocalModel,
    SplitModel,
    build_auxiliary,
    build_model,
    split_at,
)
from leansplit.parameters import checksum, fixed_state, trainable_parameters


def split(name="cifar-cnn", cut_layer="", **options):
    shape = (1, 8, 8) if name == "digits-cnn" else (3, 16, 16)
    model = build_model(name, input_shape=shape, num_classes=7, seed=1, options=options)
    cut = split_at(model, cut_layer or MODELS[name].default_cut_layer)
    inputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return cut, cut.client_model(inputs)


def build(model, smashed, seed=5, **config):
    return build_auxiliary(AuxiliaryConfig(**config), model, tuple(smashed.shape[1:]), seed=seed)


@pytest.mark.parametrize("kind", AUXILIARY_KINDS)
@pytest.mark.parametrize("name", ["cifar-cnn", "resnet18"])
def test_a_head_maps_smashed_data_to_outputs_and_depends_on_its_seed_alone(name, kind):
    model, z = split(name, **({"width": 8} if name == "resnet18" else {}))
    state = torch.get_rng_state()
    head = build(model, z, kind=kind)
    torch.randn(3)
    again = build(model, z, kind=kind)
    assert head(z).shape == (3, 7)
    assert checksum(head.state_dict()) == checksum(again.state_dict())
    other = build(model, z, seed=6, kind=kind)
    assert checksum(head.state_dict()) != checksum(other.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        build(model, z, kind=kind)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", AUXILIARY_KINDS)
def test_training_a_head_leaves_the_server_model_alone(kind):
    model, z = split()
    before = checksum(model.full_state_dict())
    head = build(model, z, kind=kind)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(1)
    assert checksum(model.full_state_dict()) == before


def test_a_copy_has_the_servers_structure_and_weights_where_asked():
    model, z = split()
    head = build(model, z, kind="copy", initialise="server")
    assert torch.equal(head(z), model.server_model(z))
    fresh = build(model, z, kind="copy")
    assert head.state_dict().keys() == fresh.state_dict().keys()
    for name, value in fresh.state_dict().items():
        assert not torch.equal(value, head.state_dict()[name]), name


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_blocks_are_the_servers_first_ones(num_blocks):
    model, z = split("resnet18", width=8)
    head = build(model, z, kind="blocks", num_blocks=num_blocks, initialise="server")
    stages = ["layer1.1.", "layer2.", "layer3."][:num_blocks]
    own = {name.removeprefix("blocks."): v for name, v in head.named_parameters()}
    servers = dict(model.server_model.named_parameters())
    kept = {name for name in servers if name.startswith(tuple(stages))}
    assert own.keys() == kept | {"fc.weight", "fc.bias"}
    for name in kept:
        assert torch.equal(own[name], servers[name])


def test_all_blocks_with_the_servers_weights_are_the_server_model():
    model, z = split("resnet18", width=8)
    head = build(model, z, kind="blocks", num_blocks=4, initialise="server")
    torch.testing.assert_close(head(z), model.server_model(z))


def test_a_blocks_activation_and_pooling_belong_to_it():
    model, z = split()  # server: pool2 conv3 relu3 conv4 relu4 pool4 flatten fc1 ...
    one = build(model, z, kind="blocks", num_blocks=1).blocks(z)
    assert one.shape[1:] == (64, 4, 4) and one.min() == 0  # after relu3, before conv4
    assert build(model, z, kind="blocks", num_blocks=2).blocks(z).shape[1:] == (128, 2, 2)


def test_a_sequential_made_by_hand_has_blocks():
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)]
    model = SplitModel(nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:]), "1")
    z = torch.randn(2, 5)
    head = build(model, z, kind="blocks", initialise="server")
    torch.testing.assert_close(head(z), model.server_model(z))  # fc takes the last layer's weights


@pytest.mark.parametrize(
    ("features", "expected"), [((2, 6), (2, 6)), ((2, 3, 6), (2, 6)), ((2, 6, 4, 4), (2, 6))]
)
def test_pooling_is_the_mean_over_positions(features, expected):
    from leansplit.models.auxiliary import BlocksHead

    values = torch.arange(torch.Size(features).numel()).reshape(features).double()
    pooled = BlocksHead._pool(values)
    assert pooled.shape == expected
    torch.testing.assert_close(pooled.sum() * (values.numel() / pooled.numel()), values.sum())


def test_a_linear_head_takes_a_linear_server_models_weights():
    model, z = split("digits-cnn")
    head = build(model, z, initialise="server")
    assert torch.equal(head(z), model.server_model(z))


def test_a_linear_head_gives_outputs_of_any_shape():
    server = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3)))
    model = SplitModel(nn.Sequential(nn.Linear(4, 5)), server, "0")
    z = torch.randn(7, 5)
    assert build(model, z)(z).shape == (7, 2, 3)
    with pytest.raises(UserError, match=r"needs outputs of shape \[B, C\]"):
        build(model, z, kind="blocks")


def test_what_is_frozen_stays_the_servers_and_is_not_trained():
    model, z = split("resnet18", width=8, norm="batch_frozen", train_affine=False)
    with torch.no_grad():
        for buffer in model.server_model.buffers():
            buffer.add_(3)
    head = build(model, z, kind="copy")
    assert checksum(fixed_state(head)) == checksum(fixed_state(model.server_model))
    assert trainable_parameters(head).keys() == trainable_parameters(model.server_model).keys()
    changed = copy.deepcopy(head)
    next(iter(changed.buffers())).add_(1)
    sums = [LocalModel(nn.Identity(), h).auxiliary_checksum for h in (head, changed)]
    assert sums[0] != sums[1]


def test_what_cannot_be_built_is_said():
    model, z = split()
    with pytest.raises(UserError, match="one linear layer"):
        build(model, z, initialise="server")
    with pytest.raises(UserError, match="num_blocks is 4, but the server model has 3 blocks"):
        build(model, z, kind="blocks", num_blocks=4)
    with pytest.raises(UserError, match="use fewer, another cut"):
        build(*split("digits-cnn"), kind="blocks")

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return x * self.by

    by_hand = SplitModel(nn.Linear(4, 5), Scale(), "0")
    z = torch.randn(2, 5)
    with pytest.raises(UserError, match="no reset_parameters"):
        build(by_hand, z, kind="copy")
    assert build(by_hand, z, kind="copy", initialise="server")(z).shape == (2, 5)
    with pytest.raises(UserError, match="cannot find the blocks of a Scale"):
        build(by_hand, z, kind="blocks")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "linaer"}, "did you mean 'linear'"),
        ({"initialise": "zeros"}, "unknown auxiliary initialise"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"num_blocks": 2}, "does nothing for a head of kind linear; set auxiliary.kind=blocks"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        AuxiliaryConfig(**fields)
