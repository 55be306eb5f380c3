"""A small convolutional network, as one flat ``nn.Sequential`` of named layers.

No batch normalisation: clients never train by backpropagation, and running statistics would not
be the same on every replica. Groups (Wu and He 2018, arXiv 1803.08494) are the alternative.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from leansplit.errors import UserError, require_choice
from leansplit.models.memory_format import in_memory_format

NORMS = ("none", "group")
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
POOLINGS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
_CHANNELS_PER_GROUP = 8


def small_cnn(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: Sequence[int] = (16, 32, 64, 128),
    pool_after: Sequence[int] = (1, 2, 4),
    hidden: int = 128,
    norm: str = "none",
    activation: str = "relu",
    pooling: str = "max",
    memory_format: str = "contiguous",
) -> nn.Sequential:
    """Build 3x3 convolutions, some followed by 2x2 pooling, and a classifier.

    Layers are called ``conv1``, ``norm1`` (if any), ``relu1`` (or ``tanh1``), ``pool1`` (if any),
    ``conv2``, ..., ``flatten``, ``fc1``, ``relu_fc1``, ``fc2``; without a hidden layer there is
    only ``fc1``.

    Args:
        input_shape: (C, H, W); the model maps (B, C, H, W) to logits (B, num_classes).
        num_classes: number of logits.
        channels: output channels of each convolution.
        pool_after: which convolutions (counted from 1) are followed by halving H and W.
        hidden: width of the hidden linear layer; 0 for none.
        norm: ``none``, or ``group`` for group normalisation after each convolution.
        activation: ``relu`` or ``tanh``.
        pooling: ``max`` or ``average``.
        memory_format: ``channels_last`` computes faster on a CPU, the same up to rounding; what
            leaves the model is ``contiguous`` either way.

    Raises:
        UserError: if an option is out of range, or the input is too small for the pooling.
    """
    require_choice("norm", norm, NORMS)
    activate = ACTIVATIONS[require_choice("activation", activation, ACTIVATIONS)]
    pool = POOLINGS[require_choice("pooling", pooling, POOLINGS)]
    conv, group_norm, pool = (
        in_memory_format(memory_format, layer) for layer in (nn.Conv2d, nn.GroupNorm, pool)
    )
    if not channels or min(channels) < 1 or hidden < 0:
        raise UserError(
            f"channels must be positive and hidden at least 0, got {list(channels)} and {hidden}"
        )
    if not set(pool_after) <= set(range(1, len(channels) + 1)):
        raise UserError(
            f"pool_after names convolutions 1 to {len(channels)}, got {sorted(pool_after)}"
        )
    in_channels, height, width = input_shape
    smallest = 2 ** len(set(pool_after))
    if min(height, width) < smallest:
        raise UserError(
            f"an input of {height}x{width} is too small: pooling {len(set(pool_after))} times "
            f"needs at least {smallest}x{smallest}; give fewer pool_after"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, out_channels in enumerate(channels, start=1):
        layers[f"conv{number}"] = conv(in_channels, out_channels, kernel_size=3, padding=1)
        if norm == "group":
            groups = math.gcd(out_channels, max(1, out_channels // _CHANNELS_PER_GROUP))
            layers[f"norm{number}"] = group_norm(groups, out_channels)
        layers[f"{activation}{number}"] = activate()
        if number in pool_after:
            layers[f"pool{number}"] = pool(2)
            height, width = height // 2, width // 2
        in_channels = out_channels
    layers["flatten"] = nn.Flatten()
    features = in_channels * height * width
    if hidden:
        layers["fc1"] = nn.Linear(features, hidden)
        layers[f"{activation}_fc1"] = activate()
        layers["fc2"] = nn.Linear(hidden, num_classes)
    else:
        layers["fc1"] = nn.Linear(features, num_classes)
    return nn.Sequential(layers)
