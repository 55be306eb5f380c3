"""Losses and metrics of text tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leansplit.models.language.chunked import ChunkedLogits
from leansplit.sequences import IGNORED


@dataclass(frozen=True)
class Verbalizer:
    """Classes as tokens: class c is what the model says if ``token_ids[c]`` is to come next.

    Logits of the whole vocabulary [B, V] become scores of classes [B, C].
    """

    token_ids: tuple[int, ...]

    def scores(self, logits: Tensor) -> Tensor:
        """Return the logits of the classes' tokens."""
        return logits[:, list(self.token_ids)]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy among the classes' tokens, in nats."""
        return F.cross_entropy(_wide(self.scores(logits)), labels)

    def accuracy(self, logits: Tensor, labels: Tensor) -> float:
        """Return the fraction of rows whose likeliest class is the label."""
        return float((self.predict(logits) == labels).double().mean())

    def predict(self, logits: Tensor) -> Tensor:
        """Return the likeliest class [B]."""
        return self.scores(logits).argmax(1)


def _wide(logits: Tensor) -> Tensor:
    """Return logits in float32 at least: half precision would round a loss to two or three digits.

    A zeroth-order estimate is the difference of two losses, of which nothing would be left.
    """
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def token_loss(logits: Tensor | ChunkedLogits, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over all wanted tokens, in nats.

    Args:
        logits: of the token after each position, [B, S, V]; S may be longer than the labels', if
            the batch was joined with longer ones; or what they would be computed from.
        labels: the wanted token of each position [B, S], ``IGNORED`` where none is.
    """
    if isinstance(logits, ChunkedLogits):
        return logits.total_loss(labels) / num_wanted(labels)
    kept = logits[:, : labels.shape[1]]
    total = F.cross_entropy(_wide(kept).flatten(0, 1), labels.flatten(), reduction="sum")
    return total / num_wanted(labels)


def token_accuracy(logits: Tensor | ChunkedLogits, labels: Tensor) -> float:
    """Return the fraction of wanted tokens that are the likeliest."""
    if isinstance(logits, ChunkedLogits):
        return logits.num_hits(labels) / num_wanted(labels)
    kept = logits[:, : labels.shape[1]]
    hits = (kept.argmax(-1) == labels) & (labels != IGNORED)
    return float(hits.sum()) / num_wanted(labels)


def num_wanted(labels: Tensor) -> int:
    """Return over how many tokens a mean goes, at least 1."""
    return max(1, int((labels != IGNORED).sum()))


def macro_f1(predictions: Tensor, labels: Tensor) -> Mapping[str, float]:
    """Return ``f1``: the mean over classes of 2 TP / (2 TP + FP + FN)."""
    from sklearn.metrics import f1_score

    return {"f1": float(f1_score(labels.numpy(), predictions.numpy(), average="macro"))}
