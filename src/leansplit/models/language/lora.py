"""Low-rank adapters (LoRA, Hu et al. 2022) by the peft library, and which parameters are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from leansplit.errors import UserError, did_you_mean, require_choice
from leansplit.models.language.families import Family

Trained = Literal["adapters", "all"]
TRAINED: Final[tuple[str, ...]] = get_args(Trained)
HEADS: Final = ("score", "classifier")
"""Modules that a classification model adds to a pretrained one: always trained, never adapted."""
ADAPTER: Final = "default"
"""What peft calls an adapter that nobody named."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which parameters of a language model are trained."""

    train: Trained = "adapters"
    """``adapters``: LoRA in the blocks; ``all``: every parameter, no LoRA. A new classification
    head is always trained."""
    full_blocks: int = 0
    """So many of the lowest blocks are trained whole and get no adapters; with the number of the
    client's blocks, its part is fine-tuned in full."""
    full_embeddings: bool = False
    """Whether the embeddings are trained too."""
    rank: int = 8
    """r, the inner dimension of B A."""
    alpha: float = 16.0
    """An adapter adds (alpha / r) B A x, or (alpha / sqrt(r)) B A x with ``rank_stabilised``."""
    dropout: float = 0.0
    """Chance that an input of an adapter is dropped while training."""
    targets: tuple[str, ...] = ()
    """Last names of the linear layers to adapt; () = query and value projections."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732)."""

    def __post_init__(self) -> None:
        """Refuse adapters that cannot be built."""
        require_choice("train", self.train, TRAINED)
        if self.full_blocks < 0:
            raise UserError(f"full_blocks must be at least 0, got {self.full_blocks}")
        if self.rank < 1:
            raise UserError(f"lora_rank must be at least 1, got {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"lora_alpha must be positive and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora_dropout must be at least 0 and below 1, got {self.dropout}")

    def to_peft(self, modules: Sequence[str], heads: Sequence[str] = ()) -> LoraConfig:
        """Return peft's configuration of adapters in the modules with these full names."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides it, whatever it is
            lora_dropout=self.dropout,
            use_rslora=self.rank_stabilised,
            target_modules=list(modules),
            modules_to_save=list(heads) or None,
            bias="none",
        )


def adapted_modules(inner: nn.Module, family: Family, config: AdapterConfig) -> list[str]:
    """Return the full names of the modules that get an adapter.

    Raises:
        UserError: if there are fewer blocks than ``full_blocks``, or a target matches no linear
            layer of a block, naming those that exist.
    """
    path = f"{family.stack}.{family.blocks}"
    blocks = list(inner.get_submodule(path).named_children())
    if config.full_blocks > len(blocks):
        raise UserError(f"full_blocks is {config.full_blocks}, but there are {len(blocks)} blocks")
    linear = [
        (at, f"{path}.{index}.{name}")
        for at, (index, block) in enumerate(blocks)
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


def adapt_(inner: nn.Module, family: Family, config: AdapterConfig) -> None:
    """Freeze ``inner`` but for what ``config`` trains, and put adapters into it.

    Adapters and heads are float32, also over a base of lower precision: a step of mu = 1e-3 is lost
    in bfloat16 for weights above 0.25. First weights of adapters come from torch's generator.

    Args:
        inner: a model of the transformers library.
        family: its architecture.
        config: what is trained.

    Raises:
        UserError: if the model has no such blocks or targets, or what is to be trained of a model
            itself is not float32.
    """
    trains_base = config.train == "all" or config.full_blocks or config.full_embeddings
    precision = next(inner.parameters()).dtype
    if trains_base and precision != torch.float32:
        raise UserError(
            f"weights of the model itself are trained in float32 only, and it is {precision}; set "
            "model_options.precision=float32, or train adapters alone"
        )
    if config.train == "all":
        inner.requires_grad_(True)
        return
    modules = adapted_modules(inner, family, config)
    inner.requires_grad_(False)
    stack = inner.get_submodule(family.stack)
    whole = list(stack.get_submodule(family.blocks).children())[: config.full_blocks]
    if config.full_embeddings:
        whole += [part for name in family.below if (part := getattr(stack, name)) is not None]
    for part in whole:
        part.requires_grad_(True)
    if modules:
        inject_adapter_in_model(config.to_peft(modules), inner, adapter_name=ADAPTER)
    for name, parameter in inner.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    for name, head in inner.named_children():
        if name in HEADS:
            head.float().requires_grad_(True)
            head.register_forward_pre_hook(_to_own_precision)


def _to_own_precision(head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Hand a float32 head what a base of lower precision computes."""
    [features] = inputs
    return features.to(next(head.parameters()).dtype)


def _is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer, GPT-2's transposed kind included."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, torch.Tensor) and weight.ndim == 2
    return is_matrix and type(module).__name__ in ("Linear", "Conv1D")
