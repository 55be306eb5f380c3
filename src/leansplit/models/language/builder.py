"""Language models as a registered model: any model that a family fits, by name, folder or config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from leansplit.errors import UserError
from leansplit.models.language.halves import Outputs, WholeLanguageModel

if TYPE_CHECKING:
    from leansplit.models.language.loading import Precision
    from leansplit.models.language.lora import Trained


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
) -> nn.Module:
    """Build a language model with adapters; torch's generator draws what the source does not hold.

    Args:
        input_shape: (2, S): token ids and attention mask of at most S positions.
        num_classes: C of a classification head.
        source: a name on the hub, a folder, or the content of a config.json (random weights).
        outputs: what the task is about; text tasks set it.
        precision: of the frozen base.
        train: ``adapters`` or ``all``; see :class:`AdapterConfig`, as for all that follow.
        full_blocks: lowest blocks that are trained whole.
        full_embeddings: whether the embeddings are trained too.
        lora_rank: r.
        lora_alpha: alpha.
        lora_dropout: of adapters' inputs.
        lora_targets: names of the layers to adapt; () = query and value projections.
        rank_stabilised: scale by alpha / sqrt(r).

    Raises:
        UserError: if there is no such model, or it does not fit the task.
    """
    # The libraries take seconds to import, which runs without language models need not wait for.
    from leansplit.models.language.loading import load_whole
    from leansplit.models.language.lora import AdapterConfig, adapt_

    adapters = AdapterConfig(
        train=train,
        full_blocks=full_blocks,
        full_embeddings=full_embeddings,
        rank=lora_rank,
        alpha=lora_alpha,
        dropout=lora_dropout,
        targets=tuple(lora_targets),
        rank_stabilised=rank_stabilised,
    )
    inner, family = load_whole(
        source, outputs=outputs, num_classes=num_classes, precision=precision
    )
    longest = getattr(inner.config, "max_position_embeddings", None)
    if longest is not None and input_shape[1] > longest:
        raise UserError(
            f"sequences have up to {input_shape[1]} tokens, but the model {source!r} takes at most "
            f"{longest}; lower task_options.max_length"
        )
    adapt_(inner, family, adapters)
    return WholeLanguageModel(inner, family, outputs)
