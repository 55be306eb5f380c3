"""Token sequences of many batches run forward in order of their length, so that few are padded.

A batch is as long as its longest sequence. Of texts, whose lengths differ, half of a small batch is
padding, which costs a pass as much as tokens do. Rows are functions of their own tokens alone, so
those of one length may come from any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

_PASS_POSITIONS, _PASS_POSITIONS_ELSEWHERE = 512, 2**13
"""Of one pass, on the CPU and on other devices: on the CPU more cost padding and gained nothing. A
bound near that of what is held would make one pass of it all, padded to its longest row."""
_HELD_POSITIONS: Final = 2**15
"""Of outputs that are held until all rows of their batches are there."""


def run_by_length(
    forward: Callable[[Tensor], Tensor], batches: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Yield ``forward(batch)`` for every batch, in order, to float32 rounding.

    Padding in front of a row is left where it is, since it may move the positions of its tokens.

    Args:
        forward: tokens [B, 2, S] -> a value for each position [B, S, ...] or for each row [B, C],
            a function of the row up to its last token.
        batches: token ids and masks, [B_m, 2, S_m] each.

    Yields:
        Outputs as of the whole batch, but for positions behind a row's last token, which nobody
        reads: some are zero.
    """
    start = held = 0
    for stop, batch in enumerate(batches):
        if stop > start and held + _num_positions(batch) > _HELD_POSITIONS:
            yield from _run_together(forward, batches[start:stop])
            start, held = stop, 0
        held += _num_positions(batch)
    if start < len(batches):
        yield from _run_together(forward, batches[start:])


def _num_positions(batch: Tensor) -> int:
    return batch.shape[0] * batch.shape[2]


def _run_together(forward: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs; positions of all rows lie one after the other, each row as its batch."""
    device = batches[0].device
    tokens = torch.cat([batch.transpose(1, 2).flatten(0, 1) for batch in batches])  # [positions, 2]
    widths = torch.cat([torch.full((len(b),), b.shape[2], device=device) for b in batches])
    begins = widths.cumsum(0) - widths
    lengths = torch.cat([_lengths(batch) for batch in batches])
    order = lengths.argsort(stable=True)
    sorted_lengths = lengths[order].tolist()
    outputs: Tensor | None = None
    is_of_positions = False
    for first, last in pairwise(_cuts(sorted_lengths, device)):
        chosen, length = order[first:last], sorted_lengths[last - 1]
        places = torch.arange(length, device=device)
        is_own = places < widths[chosen].unsqueeze(1)  # else longer than the row's batch
        at = (begins[chosen].unsqueeze(1) + places)[is_own]
        rows = tokens.new_zeros((len(chosen), length, 2))
        rows[is_own] = tokens[at]
        found = forward(rows.transpose(1, 2).contiguous())
        if outputs is None:
            is_of_positions = found.ndim > 2
            shape = found.shape[2:] if is_of_positions else found.shape[1:]
            outputs = found.new_zeros((len(tokens if is_of_positions else order), *shape))
        if is_of_positions:
            outputs[at] = found[is_own]
        else:
            outputs[chosen] = found
        del found  # before the next pass
    assert outputs is not None
    if not is_of_positions:
        return list(torch.split(outputs, [len(batch) for batch in batches]))
    parts = torch.split(outputs, [_num_positions(batch) for batch in batches])
    return [
        part.view(len(batch), batch.shape[2], *part.shape[1:])
        for part, batch in zip(parts, batches, strict=True)
    ]


def _lengths(batch: Tensor) -> Tensor:
    """Return each row's number of positions up to its last token, at least 1; int64 [B]."""
    places = torch.arange(1, batch.shape[2] + 1, device=batch.device)
    return (batch[:, 1] * places).amax(1).clamp(min=1)


def _cuts(lengths: Sequence[int], device: torch.device) -> list[int]:
    """Return where ascending lengths are cut into passes of a bounded number of positions."""
    most = _PASS_POSITIONS if device.type == "cpu" else _PASS_POSITIONS_ELSEWHERE
    cuts = [0]
    for place, length in enumerate(lengths):
        if place > cuts[-1] and (place + 1 - cuts[-1]) * length > most:
            cuts.append(place)
    return [*cuts, len(lengths)]
