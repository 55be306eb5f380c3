import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leansplit.errors import UserError
from leansplit.models import FrozenBatchNorm2d, cut_layers, resnet18, split_at

NORMS = ["group", "batch_frozen"]
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(autouse=True)
def _leave_global_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("norm", NORMS)
def test_parameter_counts(norm):
    model = resnet18((3, 32, 32), 10, norm=norm)
    assert count(model) == 11_173_962
    assert count(split_at(model, "layer1.0").client_model) == 75_840
    assert count(split_at(model, "stem").client_model) == 3 * 64 * 9 + 2 * 64


@pytest.mark.parametrize("norm", NORMS)
def test_cuts_are_stem_blocks_and_stages_and_nothing_inside_a_block(norm):
    cuts = cut_layers(resnet18((3, 32, 32), 10, norm=norm, width=4))
    assert cuts == [
        *("stem.conv", "stem.norm", "stem.relu", "stem"),
        *("layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2"),
        *("layer3.0", "layer3.1", "layer3", "layer4.0", "layer4.1", "layer4"),
        *("pool", "flatten"),
    ]


@pytest.mark.parametrize("block", BLOCKS)
def test_cuts_inside_a_block_are_refused(block):
    model = resnet18((3, 32, 32), 10, width=4)
    with pytest.raises(UserError, match=rf"skip connection.*nearest allowed cuts: .*'{block}'"):
        split_at(model, f"{block}.conv1")


def test_a_stage_is_an_alias_of_its_last_block():
    model = resnet18((3, 32, 32), 10, width=4)
    by_stage, by_block = split_at(model, "layer1"), split_at(model, "layer1.1")
    assert list(by_stage.client_model.state_dict()) == list(by_block.client_model.state_dict())


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_of_the_smashed_data(norm):
    model = resnet18((3, 32, 32), 10, norm=norm, width=4)
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == (2, 10)
    for cut_layer, shape in {
        "stem": (4, 32, 32),
        "layer1": (4, 32, 32),
        "layer2": (8, 16, 16),
        "layer3": (16, 8, 8),
        "layer4": (32, 4, 4),
    }.items():
        assert split_at(model, cut_layer).client_model(x).shape == (2, *shape)


def test_frozen_batch_norm_is_frozen_in_train_mode_too():
    layer = FrozenBatchNorm2d(3)
    layer.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    layer.running_var.copy_(torch.tensor([4.0, 5.0, 6.0]))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = torch.randn(4, 3, 5, 5)
    in_train, in_eval = layer.train()(x), layer.eval()(x)
    assert torch.equal(in_train, in_eval)
    assert torch.equal(layer.train()(x[:1]), in_eval[:1])  # no statistics of the batch
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])
    plain = nn.BatchNorm2d(3).eval()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(in_train, plain(x))


def test_a_training_step_leaves_the_statistics_alone_and_moves_the_affine_part():
    model = resnet18((3, 8, 8), 10, norm="batch_frozen", width=4).train()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_var" in name for name in statistics)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1 * parameter.grad)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name]), name
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert {"stem.norm.weight", "stem.norm.bias"} <= moved


@pytest.mark.parametrize("norm", NORMS)
def test_the_affine_part_can_be_frozen(norm):
    model = resnet18((3, 32, 32), 10, norm=norm, width=4, train_affine=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "norm" in name}
    assert len(frozen) == 2 * 20


@pytest.mark.parametrize("width", [1, 3, 24, 64])
def test_group_norm_takes_any_width(width):
    model = resnet18((1, 8, 8), 2, width=width)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 2)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8, 7), {}, "an input of 8x7 is too small for ResNet-18.*at least 8x8"),
        ((3, 8, 8), {"norm": "batch-frozen"}, "unknown norm .*did you mean 'batch_frozen'"),
        ((3, 8, 8), {"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_refusals(shape, options, message):
    with pytest.raises(UserError, match=message):
        resnet18(shape, 10, **options)
