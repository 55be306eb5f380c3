"""Adapters by the peft library, put into a model of the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from leansplit.errors import UserError, did_you_mean
from leansplit.models.language.adapters import AdapterConfig
from leansplit.models.language.completeness import HEADS
from leansplit.models.language.families import Family
from leansplit.models.language.loading import Loaded

ADAPTER: Final = "default"
"""What peft calls an adapter that nobody named."""


def to_peft(
    config: AdapterConfig, inner: nn.Module, modules: Sequence[str], heads: Sequence[str] = ()
) -> LoraConfig:
    """Return peft's configuration of adapters in the modules with these full names.

    Args:
        config: ours.
        inner: the model.
        modules: what is adapted.
        heads: modules that are trained whole and saved beside the adapters.
    """
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it, whatever it is
        lora_dropout=config.dropout,
        use_rslora=config.rank_stabilised,
        target_modules=list(modules),
        modules_to_save=list(heads) or None,
        fan_in_fan_out=any(_is_transposed(inner.get_submodule(name)) for name in modules),
        bias="none",
    )


def adapted_modules(inner: nn.Module, family: Family, config: AdapterConfig) -> list[str]:
    """Return the full names of the modules that get an adapter.

    Raises:
        UserError: if a target matches no linear layer of a block, naming those that exist.
    """
    path = family.path_to_blocks
    linear = [
        (at, f"{path}.{at}.{name}")
        for at, block in enumerate(family.blocks_of(inner))
        for name, module in block.named_modules()
        if _is_linear(module)
    ]
    targets = config.targets or family.lora_targets
    last_names = {name.rpartition(".")[2] for _, name in linear}
    for target in targets:
        if target not in last_names:
            raise UserError(
                f"lora_targets: no linear layer of a block is called {target!r}; "
                f"{did_you_mean(target, last_names)}"
            )
    return [
        name
        for at, name in linear
        if at >= config.full_blocks and name.rpartition(".")[2] in targets
    ]


def adapt_(loaded: Loaded, config: AdapterConfig) -> None:
    """Freeze a model but for what ``config`` trains, and put adapters into it.

    Adapters and heads are float32, also over a base of lower precision: a step of mu = 1e-3 is lost
    in bfloat16 for weights above 0.25. First weights of adapters come from torch's generator.
    Tied input and output embeddings that are trained are untied, since the halves train apart;
    frozen ones, often most of a small model, stay one.

    Args:
        loaded: a model; what of it was drawn anew is trained whole.
        config: what is trained.

    Raises:
        UserError: if the model has no such targets, or what is to be trained of a model itself is
            not float32.
    """
    inner, family = loaded.inner, loaded.family
    trains_base = config.train == "all" or config.full_blocks or config.full_embeddings
    precision = next(inner.parameters()).dtype
    if trains_base and precision != torch.float32:
        raise UserError(
            f"weights of the model itself are trained in float32 only, and it is {precision}; set "
            "model_options.precision=float32, or train adapters alone"
        )
    if config.train == "all" or config.full_embeddings:
        _untie_(inner)
    if config.train == "all":
        inner.requires_grad_(True)
        return
    if modules := adapted_modules(inner, family, config):
        peft_config = to_peft(config, inner, modules)
        inject_adapter_in_model(peft_config, inner, adapter_name=ADAPTER)
    inner.requires_grad_(False)
    stack = inner.get_submodule(family.stack)
    whole = family.blocks_of(inner)[: config.full_blocks]
    if config.full_embeddings:
        whole += [part for name in family.below if (part := getattr(stack, name)) is not None]
    for part in whole:
        part.requires_grad_(True)
    for name, parameter in inner.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    heads = [name for name, _ in inner.named_children() if name in HEADS]
    for name in dict.fromkeys([*heads, *loaded.drawn]):
        head = inner.get_submodule(name)
        head.float().requires_grad_(True)
        head.register_forward_pre_hook(_to_own_precision)


def _untie_(inner: Any) -> None:
    """Give the output embeddings a parameter of their own if they share that of the inputs."""
    head = getattr(inner, "lm_head", None)
    if head is not None and head.weight is inner.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        inner.config.tie_word_embeddings = False


def _to_own_precision(head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Hand a float32 head, or what is below it, what a base of lower precision computes."""
    [features] = inputs
    return features.to(next(head.parameters()).dtype)


def _is_transposed(module: nn.Module) -> bool:
    """Say whether a module is GPT-2's kind of linear layer, adapted or not."""
    return type(getattr(module, "base_layer", module)).__name__ == "Conv1D"


def _is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer, GPT-2's transposed kind included."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, torch.Tensor) and weight.ndim == 2
    return is_matrix and type(module).__name__ in ("Linear", "Conv1D")
