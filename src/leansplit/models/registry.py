"""Models by name: what exists, which options it takes, and how it is built from a seed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from leansplit.errors import UserError, did_you_mean, require_choice, require_kind
from leansplit.models.cnn import small_cnn
from leansplit.models.language.builder import language_model
from leansplit.models.resnet import resnet18

# builder(input_shape (C, H, W), num_classes, **options) -> model
Builder = Callable[..., nn.Module]
Takes = Literal["images", "tokens"]
_NUM_SEEDS = 2**64  # what torch.Generator.manual_seed accepts


@dataclass(frozen=True)
class ModelSpec:
    """One registered model.

    Attributes:
        name: what users write.
        description: one line.
        default_cut_layer: the cut used when none is given.
        builder: builder(input_shape, num_classes, **options) returns the model.
        options: the options the builder takes, with their defaults.
        takes: what its inputs are: ``images`` [C, H, W] or ``tokens`` [2, S].
    """

    name: str
    description: str
    default_cut_layer: str
    builder: Builder
    options: Mapping[str, Any]
    takes: Takes = "images"


_specs: dict[str, ModelSpec] = {}
MODELS: Mapping[str, ModelSpec] = MappingProxyType(_specs)


def register_model(
    name: str,
    builder: Builder,
    *,
    description: str,
    default_cut_layer: str,
    takes: Takes = "images",
) -> ModelSpec:
    """Add a model to ``MODELS``; its options are the builder's keyword-only arguments.

    For example, ``def linear(input_shape, num_classes, *, bias=True)`` has the option ``bias``.

    Raises:
        UserError: if the name is taken, or an option has no default.
    """
    if name in _specs:
        raise UserError(f"a model named {name!r} is registered already; choose another name")
    keywords = [
        parameter
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    without_default = [p.name for p in keywords if p.default is p.empty]
    if without_default:
        raise UserError(f"give the options {without_default} of model {name!r} a default")
    options = MappingProxyType({parameter.name: parameter.default for parameter in keywords})
    _specs[name] = ModelSpec(name, description, default_cut_layer, builder, options, takes)
    return _specs[name]


def build_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Build a registered model; equal arguments give equal bits.

    Neither torch's global generator nor any accelerator's is read or moved.

    Args:
        name: a key of ``MODELS``.
        input_shape: of one sample: (C, H, W), or (2, S) for token ids and mask.
        num_classes: number of logits.
        seed: 0 to 2**64 - 1; decides the initial weights.
        options: of this model; see ``MODELS[name].options``.
        device: ``cpu``, or ``meta`` for a model without values.

    Raises:
        UserError: on an unknown model or option, a value out of range, or an input that is too
            small for the model.
    """
    spec = MODELS[require_choice("model", name, MODELS)]
    given = dict(options or {})
    for option, value in given.items():
        if option not in spec.options:
            hint = did_you_mean(option, spec.options)
            raise UserError(f"model {name!r} has no option {option!r}; {hint}")
        require_kind(f"model_options.{option}", value, spec.options[option])
    is_image = len(input_shape) == 3 and min(input_shape) >= 1
    is_tokens = len(input_shape) == 2 and input_shape[0] == 2 and input_shape[1] >= 1
    if not (is_image if spec.takes == "images" else is_tokens):
        wanted = "images (channels, height, width)"
        if spec.takes == "tokens":
            wanted = "tokens (2, length)"
        fitting = ", ".join(sorted(n for n, other in MODELS.items() if other.takes != spec.takes))
        raise UserError(
            f"model {name!r} takes {wanted}, but the inputs are {tuple(input_shape)}; choose "
            f"another task, or one of the models {fitting}"
        )
    lowest = 0 if spec.takes == "tokens" else 1  # 0: tokens are predicted, not classes
    if num_classes < lowest:
        raise UserError(f"num_classes must be at least {lowest}, got {num_classes}")
    if not 0 <= seed < _NUM_SEEDS:
        raise UserError(f"seed must be from 0 to 2**64 - 1, got {seed}")
    # The CPU generator alone: torch.manual_seed would reseed accelerators, which are not restored.
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        try:
            return spec.builder(tuple(input_shape), num_classes, **given)
        except TypeError as error:
            raise UserError(f"model {name!r} cannot take {given}: {error}") from error


register_model(
    "digits-cnn",
    functools.partial(
        small_cnn,
        channels=(8, 8),
        pool_after=(1, 2),
        hidden=0,
        activation="tanh",
        pooling="average",
    ),
    description="Two convolutions in LeNet's manner (LeCun et al. 1998) for 8x8 digits: tanh, "
    "average pooling; 664 client parameters at the default cut, a linear server.",
    default_cut_layer="pool2",
)
register_model(
    "cifar-cnn",
    functools.partial(
        small_cnn,
        channels=(16, 32, 64, 128),
        pool_after=(1, 2, 4),
        hidden=128,
        norm="none",
        memory_format="channels_last",
    ),
    description="Four convolutions for 32x32 images; 5,088 client parameters at the default cut.",
    default_cut_layer="relu2",
)
register_model(
    "resnet18",
    resnet18,
    description="ResNet-18 for small images (He et al. 2016), with group or frozen batch norm.",
    default_cut_layer="layer1.0",
)
register_model(
    "language",
    language_model,
    description="Any causal language model or encoder of a known family, with LoRA; name it with "
    "model_options.source, or as the model itself: a hub name or a folder.",
    default_cut_layer="1",
    takes="tokens",
)
