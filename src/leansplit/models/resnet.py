"""ResNet-18 for small images, as an ``nn.Sequential`` of named stages.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
arXiv 1512.03385, with the stem for small images of their section 4.2: a 3x3 convolution of stride
1 and no max-pooling. Cuts exist after ``stem``, after each block (``layer1.0``, ...) and after
each stage (``layer1``, the same place as its last block).
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from leansplit.errors import UserError, require_choice

NORMS = ("group", "batch_frozen")
_BLOCKS_PER_STAGE = (2, 2, 2, 2)
_MAX_GROUPS = 32  # of Wu and He 2018, arXiv 1803.08494
_SMALLEST_SIDE = 8  # three halvings leave 1x1


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that always uses its running statistics, and never updates them.

    Replicas then stay equal, and all probes of a zeroth-order step see the same function. State
    keys are those of ``nn.BatchNorm2d``, so that pretrained weights load. Until they do, the layer
    is a plain scale and shift: train from scratch with group normalisation instead.

    Args:
        num_features: channels C of the input (B, C, H, W).
        train_affine: whether scale and shift are trainable.
    """

    def __init__(self, num_features: int, *, train_affine: bool = True) -> None:
        super().__init__(num_features)
        for parameter in self.parameters():
            parameter.requires_grad_(train_affine)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W) with the running mean and variance, in train mode too."""
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, in, H, W) to (B, out, H/stride, W/stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, norm: str, train_affine: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, stride)
        self.norm1 = _norm(norm, out_channels, train_affine)
        self.conv2 = _conv(out_channels, out_channels, 1)
        self.norm2 = _norm(norm, out_channels, train_affine)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=_conv(in_channels, out_channels, stride, kernel_size=1),
                    norm=_norm(norm, out_channels, train_affine),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


def resnet18(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    norm: str = "group",
    train_affine: bool = True,
    width: int = 64,
) -> nn.Sequential:
    """Build ResNet-18: (B, C, H, W) to logits (B, num_classes).

    With 3 input channels, 10 classes and width 64 it has 11,173,962 parameters, of which the
    client model cut after ``layer1.0`` has 75,840.

    Args:
        input_shape: (C, H, W).
        num_classes: number of logits.
        norm: ``group`` to train from scratch, ``batch_frozen`` for pretrained weights.
        train_affine: whether the scale and shift of the normalisation are trainable.
        width: channels of the first stage; each later stage doubles them.

    Raises:
        UserError: on an unknown norm, a width below 1, or images below 8x8.
    """
    require_choice("norm", norm, NORMS)
    in_channels, *sides = input_shape
    if width < 1:
        raise UserError(f"width must be at least 1, got {width}")
    if min(sides) < _SMALLEST_SIDE:
        raise UserError(
            f"an input of {sides[0]}x{sides[1]} is too small for ResNet-18, which halves it three "
            f"times; at least {_SMALLEST_SIDE}x{_SMALLEST_SIDE} is needed"
        )
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["stem"] = nn.Sequential(
        OrderedDict(
            conv=_conv(in_channels, width, 1), norm=_norm(norm, width, train_affine), relu=nn.ReLU()
        )
    )
    channels = width
    for stage, num_blocks in enumerate(_BLOCKS_PER_STAGE):
        blocks = []
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            out_channels = width * 2**stage
            blocks.append(
                BasicBlock(channels, out_channels, stride, norm=norm, train_affine=train_affine)
            )
            channels = out_channels
        stages[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    stages["pool"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    stages["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(stages)


def _conv(in_channels: int, out_channels: int, stride: int, *, kernel_size: int = 3) -> nn.Conv2d:
    """Return a convolution without bias, initialised for ReLU (He et al. 2015)."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _norm(norm: str, channels: int, train_affine: bool) -> nn.Module:
    if norm == "batch_frozen":
        return FrozenBatchNorm2d(channels, train_affine=train_affine)
    layer = nn.GroupNorm(math.gcd(_MAX_GROUPS, channels), channels)
    for parameter in layer.parameters():
        parameter.requires_grad_(train_affine)
    return layer
