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
from torch.nn.functional import pad

_PASS_POSITIONS, _PASS_POSITIONS_ELSEWHERE = 512, 2**16
"""Of one pass, on the CPU and on other devices: on the CPU more cost padding and gained nothing."""
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
        if stop > start and held + _positions(batch) > _HELD_POSITIONS:
            yield from _run_together(forward, batches[start:stop])
            start, held = stop, 0
        held += _positions(batch)
    if start < len(batches):
        yield from _run_together(forward, batches[start:])


def _positions(batch: Tensor) -> int:
    return batch.shape[0] * batch.shape[2]


def _run_together(forward: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
    longest = max(batch.shape[2] for batch in batches)
    rows = torch.cat([pad(b, (0, longest - b.shape[2])) for b in batches])
    places = torch.arange(1, longest + 1, device=rows.device)
    lengths = (rows[:, 1] * places).amax(1).clamp(min=1)  # up to the last token
    order = lengths.argsort(stable=True)
    sorted_lengths = lengths[order].tolist()
    outputs: Tensor | None = None
    is_of_positions = False
    for first, last in pairwise(_cuts(sorted_lengths, rows.device)):
        chosen, length = order[first:last], sorted_lengths[last - 1]
        found = forward(rows[chosen, :, :length].contiguous())
        if outputs is None:
            is_of_positions = found.ndim > 2
            shape = (longest, *found.shape[2:]) if is_of_positions else found.shape[1:]
            outputs = found.new_zeros((len(rows), *shape))
        if is_of_positions:
            outputs[chosen, :length] = found
        else:
            outputs[chosen] = found
        del found  # before the next pass
    assert outputs is not None
    parts = torch.split(outputs, [len(batch) for batch in batches])
    if not is_of_positions:
        return list(parts)
    return [part[:, : b.shape[2]].contiguous() for part, b in zip(parts, batches, strict=True)]


def _cuts(lengths: Sequence[int], device: torch.device) -> list[int]:
    """Return where ascending lengths are cut into passes of a bounded number of positions."""
    most = _PASS_POSITIONS if device.type == "cpu" else _PASS_POSITIONS_ELSEWHERE
    cuts = [0]
    for place, length in enumerate(lengths):
        if place > cuts[-1] and (place + 1 - cuts[-1]) * length > most:
            cuts.append(place)
    return [*cuts, len(lengths)]
