"""Layers whose running statistics would be lost when only parameters travel."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from leansplit.errors import UserError
from leansplit.models.resnet import FrozenBatchNorm2d


def refuse_batch_statistics(model: nn.Module, method: str) -> None:
    """Refuse a model that updates running batch statistics while clients train it.

    Methods that average parameters would leave every client's statistics behind, and the global
    model would be evaluated with those of nobody.

    Raises:
        UserError: naming the layer and what to use in its place.
    """
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            continue  # its statistics never move
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise UserError(
                f"{method} averages parameters, but layer {name!r} ({type(module).__name__}) also "
                "keeps running statistics; use group normalisation or frozen statistics "
                "(model_options.norm: group or batch_frozen)"
            )
