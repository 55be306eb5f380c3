"""Layers that look at more than one sample: running statistics, micro-batches, privacy."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

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


def refuse_micro_batches(client_model: nn.Module) -> None:
    """Refuse a client model whose pass over a batch is not that over its parts put together.

    Raises:
        UserError: naming a layer that normalises over the batch, or draws one mask for all of it.
    """
    for name, module in client_model.named_modules():
        is_mixing = _is_mixing(module)
        if is_mixing or (isinstance(module, _DropoutNd) and module.p > 0):
            what = "normalises over the batch" if is_mixing else "drops elements of the whole batch"
            raise UserError(
                f"layer {name!r} ({type(module).__name__}) {what}, which micro-batches would "
                "change; set micro_batch to 0"
            )


def refuse_mixing(client_model: nn.Module) -> None:
    """Refuse a client model whose output for one sample depends on others of its batch.

    Raises:
        UserError: naming the layer.
    """
    for name, module in client_model.named_modules():
        if _is_mixing(module):
            raise UserError(
                f"layer {name!r} ({type(module).__name__}) mixes the samples of a batch, so "
                "no sample is protected alone; use group normalisation or frozen "
                "statistics (model_options.norm: group or batch_frozen)"
            )


def _is_mixing(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and not isinstance(module, FrozenBatchNorm2d)
