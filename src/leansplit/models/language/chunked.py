"""Logits of tokens that are never held all at once.

A vocabulary is far wider than a model: the logits of a batch, B S V numbers, would be most of what
a client with an auxiliary head has to hold. They are computed for some positions at a time, only
where a token is wanted, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from leansplit.sequences import IGNORED

POSITIONS_AT_ONCE = 64


@dataclass(frozen=True)
class ChunkedLogits:
    """What logits [B, S, V] would be computed from.

    Attributes:
        hidden_states: [B, S, D], after the final norm.
        unembed: hidden states [n, D] -> logits [n, V].
        dtype: of the logits that enter a loss; None = as they are.
    """

    hidden_states: Tensor
    unembed: Callable[[Tensor], Tensor]
    dtype: torch.dtype | None = None

    def double(self) -> ChunkedLogits:
        """Return the same with losses in float64."""
        return replace(self, dtype=torch.float64)

    def total_loss(self, labels: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of all wanted tokens [B, S], in nats."""
        total = self.hidden_states.new_zeros((), dtype=self.dtype or torch.float32)
        for hidden, wanted in self._chunks(labels):
            if torch.is_grad_enabled() and hidden.requires_grad:
                value = checkpoint(self._loss, hidden, wanted, use_reentrant=False)
            else:
                value = self._loss(hidden, wanted)
            total = total + value
        return total

    def num_hits(self, labels: Tensor) -> int:
        """Return how many of the wanted tokens are the likeliest."""
        return sum(
            int((self.unembed(hidden).argmax(-1) == wanted).sum())
            for hidden, wanted in self._chunks(labels)
        )

    def _loss(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        logits = self.unembed(hidden)
        return F.cross_entropy(logits.to(self.dtype or torch.float32), wanted, reduction="sum")

    def _chunks(self, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self.hidden_states[:, : labels.shape[1]].flatten(0, 1)
        kept = (labels.flatten() != IGNORED).nonzero()[:, 0]
        for chosen in torch.split(kept, POSITIONS_AT_ONCE):
            yield rows[chosen], labels.flatten()[chosen]
