"""Batches of token sequences: what inputs, smashed data and labels look like, and how they join.

Inputs are one int64 tensor [B, 2, S]: token ids, and the attention mask (1 token, 0 padding).
Methods, auxiliary heads and estimators handle one tensor z at the cut; for sequences it is

    z[b, s, :D] = hidden state of position s,    z[b, s, D] = the mask at s

so the server knows what to attend to. The mask is no function of trained parameters: probes leave
it alone, and its place in the smashed gradient is zero. On the wire hidden states and mask travel
apart (:mod:`leansplit.wire.codec`). Labels are classes [B] or the wanted token of each position
[B, S], ``IGNORED`` where none is.

Batches are as long as their longest sequence, so joining several may add padding on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED: Final = -100
"""The label of a position that the loss leaves out."""


def pack(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Join hidden states [..., S, D] and mask [..., S] to z [..., S, D + 1]."""
    return torch.cat([hidden_states, mask.unsqueeze(-1).to(hidden_states.dtype)], dim=-1)


def unpack(smashed_data: Tensor) -> tuple[Tensor, Tensor]:
    """Part z [..., S, D + 1] into hidden states [..., S, D] and int64 mask [..., S]."""
    hidden_states, mask = smashed_data[..., :-1], smashed_data[..., -1]
    return hidden_states.contiguous(), (mask > 0.5).long()


def are_tokens(inputs: Tensor) -> bool:
    """Say whether ``inputs`` are token ids with their mask."""
    return inputs.dtype == torch.int64 and inputs.ndim == 3 and inputs.shape[1] == 2


def trim(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Drop positions that are padding in every row; other inputs than tokens stay as they are."""
    if not are_tokens(inputs):
        return inputs, labels
    used = inputs[:, 1].any(0).nonzero()
    if not len(used):
        return inputs, labels
    kept = slice(int(used[0]), int(used[-1]) + 1)
    return inputs[:, :, kept], labels[:, kept] if labels.ndim == 2 else labels


def join(batches: Sequence[Tensor]) -> Tensor:
    """Concatenate batches [B_m, S_m, ...] to [sum B_m, max S_m, ...], padding on the right.

    Batches of one shape are concatenated as they are, one alone is not copied.
    """
    if len(batches) == 1:
        return batches[0]
    return torch.cat(_equally_long(batches))


def part(joint: Tensor, batches: Sequence[Tensor]) -> list[Tensor]:
    """Undo :func:`join` for a tensor of the joint batches' shape."""
    parts = torch.split(joint, [len(batch) for batch in batches])
    return [
        own if own.shape == batch.shape else own[:, : batch.shape[1]]
        for own, batch in zip(parts, batches, strict=True)
    ]


def _equally_long(batches: Sequence[Tensor]) -> list[Tensor]:
    if len({batch.shape[1:] for batch in batches}) == 1:
        return list(batches)
    longest = max(batch.shape[1] for batch in batches)
    filler = IGNORED if batches[0].dtype == torch.int64 else 0
    return [
        pad(batch, (0, 0) * (batch.ndim - 2) + (0, longest - batch.shape[1]), value=filler)
        for batch in batches
    ]
