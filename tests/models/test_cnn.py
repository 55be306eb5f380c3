import pytest
import torch
from torch import nn

from leansplit.errors import UserError
from leansplit.models import build_model, cut_layers, small_cnn, split_at


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_digits_client_has_664_parameters():
    model = build_model("digits-cnn", input_shape=(1, 8, 8), num_classes=10, seed=0)
    split = split_at(model, "pool2")
    assert count(split.client_model) == 80 + 584  # 8*(9+1) and 8*(8*9+1)
    assert count(model) == 664 + 330  # and 10*(32+1)
    assert split.client_model(torch.zeros(5, 1, 8, 8)).shape == (5, 8, 2, 2)
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_cifar_client_has_5088_parameters():
    model = build_model("cifar-cnn", input_shape=(3, 32, 32), num_classes=10, seed=0)
    split = split_at(model, "relu2")
    assert count(split.client_model) == 448 + 4_640  # 16*(27+1) and 32*(16*9+1)
    assert count(model) == 361_002
    assert split.client_model(torch.zeros(2, 3, 32, 32)).shape == (2, 32, 16, 16)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_layers_have_readable_names():
    model = small_cnn((1, 8, 8), 3, channels=[4, 8], pool_after=[2], hidden=5, norm="group")
    names = [name for name, _ in model.named_children()]
    assert names == [
        *("conv1", "norm1", "relu1", "conv2", "norm2", "relu2", "pool2"),
        *("flatten", "fc1", "relu_fc1", "fc2"),
    ]
    assert cut_layers(model) == names[:-1]


def test_every_cut_but_the_last_layer_is_allowed_without_hidden_layer():
    model = small_cnn((3, 9, 7), 4, channels=[5], pool_after=[1], hidden=0)
    assert cut_layers(model) == ["conv1", "relu1", "pool1", "flatten"]
    assert model(torch.zeros(2, 3, 9, 7)).shape == (2, 4)


@pytest.mark.parametrize("channels", [3, 8, 16, 20, 64])
def test_group_norm_takes_any_number_of_channels(channels):
    model = small_cnn((1, 4, 4), 2, channels=[channels], pool_after=[], norm="group")
    assert channels % model.norm1.num_groups == 0
    assert model(torch.randn(2, 1, 4, 4)).shape == (2, 2)


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_memory_format_changes_speed_not_the_function(pooling):
    models = [
        build_model(
            "cifar-cnn",
            input_shape=(3, 32, 32),
            num_classes=10,
            seed=0,
            options={"memory_format": kind, "norm": "group", "pooling": pooling},
        )
        for kind in ("contiguous", "channels_last")
    ]
    images = torch.randn(4, 3, 32, 32)
    outputs, smashed, gradients = [], [], []
    for model in models:
        client_model = split_at(model, "norm2").client_model
        smashed.append(client_model(images))
        outputs.append(model(images))
        outputs[-1].logsumexp(1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert models[1].conv1(images).is_contiguous(memory_format=torch.channels_last)
    assert smashed[1].is_contiguous()  # as a message would bring it
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(smashed[1], smashed[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_unknown_memory_format_is_refused():
    with pytest.raises(UserError, match="memory_format"):
        small_cnn((3, 8, 8), 3, memory_format="channels_first")


def test_no_batch_norm():
    for norm in ("none", "group"):
        model = small_cnn((3, 32, 32), 10, norm=norm)
        assert not list(model.buffers())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 4, 9), {}, "an input of 4x9 is too small: pooling 3 times needs at least 8x8"),
        ((1, 8, 8), {"norm": "grop"}, "unknown norm 'grop'; did you mean 'group'"),
        ((1, 8, 8), {"channels": []}, "channels must be positive"),
        ((1, 8, 8), {"channels": [4, 0], "pool_after": []}, "channels must be positive"),
        ((1, 8, 8), {"hidden": -1}, "hidden at least 0"),
        ((1, 8, 8), {"pool_after": [0, 5]}, r"convolutions 1 to 4, got \[0, 5\]"),
    ],
)
def test_refusals(shape, options, message):
    with pytest.raises(UserError, match=message):
        small_cnn(shape, 10, **options)
