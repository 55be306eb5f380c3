"""What is trained of a language model: low-rank adapters (LoRA, Hu et al. 2022), blocks, or all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from leansplit.errors import UserError, require_choice

Trained = Literal["adapters", "all"]
TRAINED: Final[tuple[str, ...]] = get_args(Trained)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which parameters of a language model are trained."""

    train: Trained = "adapters"
    """``adapters``: LoRA in the blocks; ``all``: every parameter, no LoRA. A new classification
    head is always trained."""
    full_blocks: int = 0
    """So many of the lowest blocks are trained whole and get no adapters. With the number of the
    client's blocks all but its embeddings is; with ``full_embeddings`` too, all of its part."""
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

    @property
    def holds_everything(self) -> bool:
        """Whether adapters and a classification head are all that is trained."""
        return self.train == "adapters" and not (self.full_blocks or self.full_embeddings)

    def __post_init__(self) -> None:
        """Refuse adapters that cannot be built."""
        require_choice("train", self.train, TRAINED)
        if isinstance(self.targets, str):
            raise UserError(f'lora_targets is a list such as ["q_proj"], got {self.targets!r}')
        if self.full_blocks < 0:
            raise UserError(f"full_blocks must be at least 0, got {self.full_blocks}")
        if self.rank < 1:
            raise UserError(f"lora_rank must be at least 1, got {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"lora_alpha must be positive and finite, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora_dropout must be at least 0 and below 1, got {self.dropout}")
