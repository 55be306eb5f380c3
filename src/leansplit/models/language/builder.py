"""Language models as a registered model: what a family fits, by name, folder or config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from leansplit.errors import UserError
from leansplit.models.language.adapters import AdapterConfig, Trained
from leansplit.models.language.families import Precision
from leansplit.models.language.halves import HeldElsewhere, Outputs, WholeLanguageModel, client_half
from leansplit.models.split import SplitModel, split_at


def language_model(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    source: str = "",
    outputs: Outputs = "classes",
    precision: Precision = "float32",
    train: Trained = "adapters",
    full_blocks: int = 0,
    full_embeddings: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    lora_targets: tuple[str, ...] = (),
    rank_stabilised: bool = False,
    num_tokens: int = 0,
) -> nn.Module:
    """Build a language model with adapters; torch's generator draws what the source does not hold.

    Args:
        input_shape: (2, S): token ids and attention mask of at most S positions.
        num_classes: C of a classification head.
        source: a name on the hub, a folder, or the content of a config.json (random weights).
        outputs: what the model puts out; text tasks set it.
        precision: of the frozen base.
        train: ``adapters`` or ``all``; see :class:`AdapterConfig`, as for all that follow.
        full_blocks: lowest blocks that are trained whole.
        full_embeddings: whether the embeddings are trained too.
        lora_rank: r.
        lora_alpha: alpha.
        lora_dropout: of adapters' inputs.
        lora_targets: names of the layers to adapt; () = query and value projections.
        rank_stabilised: scale by alpha / sqrt(r).
        num_tokens: so many different tokens the texts may have; text tasks set it.

    Raises:
        UserError: if there is no such model, or it does not fit the task.
    """
    # The libraries take seconds to import, which runs without language models need not wait for.
    from leansplit.models.language.loading import load_whole
    from leansplit.models.language.lora import adapt_

    adapters = adapter_config(
        train=train,
        full_blocks=full_blocks,
        full_embeddings=full_embeddings,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        lora_targets=lora_targets,
        rank_stabilised=rank_stabilised,
    )
    loaded = load_whole(source, outputs=outputs, num_classes=num_classes, precision=precision)
    inner = loaded.inner
    num_blocks = inner.config.num_hidden_layers
    if full_blocks > num_blocks:
        raise UserError(f"full_blocks is {full_blocks}, but there are {num_blocks} blocks")
    longest = getattr(inner.config, "max_position_embeddings", None)
    if longest is not None and input_shape[1] > longest:
        raise UserError(
            f"sequences have up to {input_shape[1]} tokens, but the model takes at most {longest}; "
            "lower task_options.max_length"
        )
    if num_tokens > (known := inner.config.vocab_size):
        raise UserError(
            f"the texts hold token {num_tokens - 1}, but the model knows {known} tokens, 0 to "
            f"{known - 1}: the tokenizer is that of another model; leave out "
            "task_options.tokenizer, or name the model's own"
        )
    adapt_(loaded, adapters)
    return WholeLanguageModel(inner, loaded.family, outputs)


def client_part(
    cut_layer: str, num_classes: int, *, extra_blocks: int, options: Mapping[str, Any]
) -> SplitModel:
    """Return what a client of a pretrained model holds; no other weights are read or kept.

    Args:
        cut_layer: how many blocks.
        num_classes: C of a classification head.
        extra_blocks: blocks above the cut that an auxiliary head is made of, with the model's head;
            0 = none, and no head.
        options: those of :func:`language_model` that were given.

    Raises:
        UserError: if there is no such model.
    """
    from leansplit.models.language.loading import load_client_part, load_whole
    from leansplit.models.language.lora import adapt_

    source, outputs, num_blocks = options["source"], options["outputs"], int(cut_layer)
    precision = options.get("precision", "float32")
    adapters = adapter_config_of(options)
    if extra_blocks:
        loaded = load_whole(
            source,
            outputs=outputs,
            num_classes=num_classes,
            precision=precision,
            num_blocks=num_blocks + extra_blocks,
        )
        adapt_(loaded, adapters)
        whole = WholeLanguageModel(loaded.inner, loaded.family, outputs)
        return split_at(whole, cut_layer)
    loaded = load_client_part(source, num_blocks=num_blocks, precision=precision)
    adapt_(loaded, adapters)
    return SplitModel(
        client_half(loaded.inner, loaded.family, num_blocks),
        HeldElsewhere(outputs, num_classes),
        cut_layer,
        has_mask=True,
        frozen_stays=True,
    )


def adapter_config(
    *,
    train: Trained = "adapters",
    full_blocks: int = 0,
    full_embeddings: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    lora_targets: Sequence[str] = (),
    rank_stabilised: bool = False,
) -> AdapterConfig:
    """Read the options of :func:`language_model` that say what is trained."""
    return AdapterConfig(
        train=train,
        full_blocks=full_blocks,
        full_embeddings=full_embeddings,
        rank=lora_rank,
        alpha=lora_alpha,
        dropout=lora_dropout,
        targets=tuple(lora_targets),
        rank_stabilised=rank_stabilised,
    )


def adapter_config_of(options: Mapping[str, Any]) -> AdapterConfig:
    """Return what the given options of :func:`language_model` say is trained."""
    return adapter_config(**{name: options[name] for name in _OF_ADAPTERS if name in options})


_OF_ADAPTERS = tuple(inspect.signature(adapter_config).parameters)
