"""The first blocks of a server model, as a model of their own.

A block is a top-level layer with parameters, and the operations without parameters that follow it
(activation, pooling), where one tensor alone leaves it. In a ResNet cut within a stage the blocks
are what is left of the stage, then whole stages. The last such layer, which makes the outputs, is
no block.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from leansplit.errors import UserError
from leansplit.models.traced_part import TracedPart


def first_blocks(server_model: nn.Module, num_blocks: int, smashed: Tensor) -> nn.Module:
    """Return a copy of the first ``num_blocks`` blocks of ``server_model``.

    What follows the last block and changes the rank of its output, such as flattening, is left out.

    Args:
        server_model: a half that ``split_at`` made, or an ``nn.Sequential``.
        num_blocks: how many; at least 1.
        smashed: an example z, shape [1, ...].

    Raises:
        UserError: if there are fewer blocks, or the server model is of another kind.
    """
    prefixes: list[tuple[nn.Module | None, nn.Module]]
    if isinstance(server_model, nn.Sequential):
        layers = list(server_model)
        prefixes = [(layer, nn.Sequential(*layers[:at])) for at, layer in enumerate(layers, 1)]
    elif isinstance(server_model, TracedPart):
        prefixes = [*server_model.prefixes()]
    else:
        raise UserError(
            f"auxiliary.kind=blocks cannot find the blocks of a {type(server_model).__name__}; "
            "make the halves with split_at, or use auxiliary.kind=linear or copy"
        )
    starts = [at for at, (layer, _) in enumerate(prefixes) if layer and _has_parameters(layer)]
    if len(starts) <= num_blocks:
        raise UserError(
            f"auxiliary.num_blocks is {num_blocks}, but the server model has "
            f"{max(0, len(starts) - 1)} blocks before its last layer; use fewer, another cut, or "
            "auxiliary.kind=linear or copy"
        )
    found = prefixes[starts[num_blocks - 1]][1]
    with torch.no_grad():
        rank = found(smashed).ndim
        for _, longer in prefixes[starts[num_blocks - 1] + 1 : starts[num_blocks]]:
            if longer(smashed).ndim != rank:
                break
            found = longer
    return copy.deepcopy(found)


def _has_parameters(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters())
