"""Auxiliary heads: small models a(z; theta_a) that let a client train without the server's answer.

A head takes the smashed data and returns outputs of the server model's shape, so that the task's
loss applies. Clients train client model and head against their own loss (CSE-FSL, HERON-SFL), or
use the head to imitate the gradient that the server would send (FSL-SAGE).
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from leansplit.errors import UserError, require_choice
from leansplit.models.blocks import first_blocks
from leansplit.models.language.auxiliary import language_head
from leansplit.models.language.halves import HeldElsewhere, LanguageServerModel
from leansplit.models.split import SplitModel
from leansplit.parameters import checksum, fixed_state

AuxiliaryKind = Literal["linear", "copy", "blocks"]
AUXILIARY_KINDS: Final[tuple[str, ...]] = get_args(AuxiliaryKind)
Initialise = Literal["random", "server"]
INITIALISATIONS: Final[tuple[str, ...]] = get_args(Initialise)


@dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """Which auxiliary head, and where its first weights come from."""

    kind: AuxiliaryKind = "linear"
    """``linear``: one fully connected layer on the flattened smashed data; ``copy``: the structure
    of the server model; ``blocks``: its first ``num_blocks`` blocks, mean pooling, one linear
    layer."""
    num_blocks: int = 1
    """Blocks of the server model under ``blocks``; a block is a top-level layer with parameters
    and the layers without that follow it."""
    initialise: Initialise = "random"
    """``random``: drawn from the run's seed; ``server``: the server model's initial weights, where
    the structure matches."""

    def __post_init__(self) -> None:
        """Refuse heads that cannot be built."""
        require_choice("auxiliary kind", self.kind, AUXILIARY_KINDS)
        require_choice("auxiliary initialise", self.initialise, INITIALISATIONS)
        if self.num_blocks < 1:
            raise UserError(f"num_blocks must be at least 1, got {self.num_blocks}")
        if self.num_blocks > 1 and self.kind != "blocks":
            raise UserError(
                f"auxiliary.num_blocks = {self.num_blocks} does nothing for a head of kind "
                f"{self.kind}; set auxiliary.kind=blocks, or leave it out"
            )


class LocalModel(nn.Module):
    """Client model and auxiliary head: what a client trains against its own loss.

    Parameters are named ``client.<name>`` and ``auxiliary.<name>``.
    """

    def __init__(self, client: nn.Module, auxiliary: nn.Module) -> None:
        super().__init__()
        self.client = client
        self.auxiliary = auxiliary

    @functools.cached_property
    def auxiliary_checksum(self) -> str:
        """Names the bits of the head's frozen parameters and buffers, which never change."""
        return checksum(fixed_state(self.auxiliary))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map inputs [B, ...] to (smashed data [B, ...], outputs [B, ...])."""
        smashed = self.client(inputs)
        return smashed, self.auxiliary(smashed)

    def head_alone(self) -> LocalModel:
        """Return the head as a local model of its own, whose inputs are smashed data.

        What is left to train where the client model is frozen; shares the head's parameters.
        """
        return LocalModel(nn.Identity(), self.auxiliary)


class LinearHead(nn.Module):
    """One fully connected layer from flattened smashed data to outputs of any shape."""

    def __init__(self, smashed_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.fc = nn.Linear(math.prod(smashed_shape), math.prod(output_shape))
        self._output_shape = output_shape

    def forward(self, smashed: Tensor) -> Tensor:
        """Map [B, ...] to [B, *output_shape]."""
        outputs: Tensor = self.fc(smashed.flatten(1))
        return outputs.reshape(-1, *self._output_shape)


class BlocksHead(nn.Module):
    """Blocks of the server model, the mean over all positions of a channel, one linear layer."""

    def __init__(self, blocks: nn.Module, smashed: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.blocks = blocks
        with torch.no_grad():
            features = self._pool(blocks(smashed))
        self.fc = nn.Linear(features.shape[1], num_outputs)

    def forward(self, smashed: Tensor) -> Tensor:
        """Map [B, ...] to [B, num_outputs]."""
        outputs: Tensor = self.fc(self._pool(self.blocks(smashed)))
        return outputs

    @staticmethod
    def _pool(features: Tensor) -> Tensor:
        """Average [B, C, H, W] over H and W, [B, S, D] over S; leave [B, D] as it is."""
        if features.ndim == 3:
            return features.mean(1)
        return features.flatten(2).mean(2) if features.ndim > 3 else features


def build_auxiliary(
    config: AuxiliaryConfig, model: SplitModel, smashed_shape: tuple[int, ...], *, seed: int
) -> nn.Module:
    """Build an auxiliary head; equal arguments give equal bits, whoever builds it.

    No global generator is moved, and the head shares no memory with ``model``. It is built on the
    CPU and moved to the server model's device.

    Args:
        config: kind and initial weights.
        model: the split model; ``initialise = server`` copies its weights as they are now.
        smashed_shape: shape of one sample's smashed data, without the batch dimension.
        seed: of ``initialise = random``; 0 to 2**64 - 1.

    Raises:
        UserError: if the server model has no such blocks, or its weights do not fit the head.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        device = next(iter(model.client_model.parameters())).device
        if isinstance(model.server_model, LanguageServerModel | HeldElsewhere):
            return _moved(language_head(config, model.server_model, smashed_shape[-1] - 1), device)
        smashed = torch.zeros(1, *smashed_shape)
        server_model = _moved(copy.deepcopy(model.server_model), torch.device("cpu")).eval()
        if config.kind == "copy":
            is_random = config.initialise == "random"
            return _moved(_redrawn(server_model) if is_random else server_model, device)
        with torch.no_grad():
            output_shape = tuple(server_model(smashed).shape[1:])
        build = _linear_head if config.kind == "linear" else _blocks_head
        return _moved(build(config, server_model, smashed, output_shape), device)


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    """Return ``module`` on ``device``; one that is there already is left alone."""
    is_there = all(tensor.device == device for tensor in module.state_dict().values())
    return module if is_there else module.to(device)


def _linear_head(
    config: AuxiliaryConfig, server_model: nn.Module, smashed: Tensor, output_shape: tuple[int, ...]
) -> nn.Module:
    head = LinearHead(tuple(smashed.shape[1:]), output_shape)
    if config.initialise == "server" and not _take_linear(head.fc, server_model):
        raise UserError(
            "auxiliary.initialise=server needs a server model that is one linear layer of the "
            "head's shape; use auxiliary.kind=copy or blocks, or initialise=random"
        )
    return head


def _blocks_head(
    config: AuxiliaryConfig, server_model: nn.Module, smashed: Tensor, output_shape: tuple[int, ...]
) -> nn.Module:
    if len(output_shape) != 1:
        raise UserError(
            f"auxiliary.kind=blocks needs outputs of shape [B, C], but the server model's are "
            f"[B, {', '.join(map(str, output_shape))}]; use linear or copy"
        )
    blocks = first_blocks(server_model, config.num_blocks, smashed)
    if config.initialise == "random":
        return BlocksHead(_redrawn(blocks), smashed, output_shape[0])
    head = BlocksHead(blocks, smashed, output_shape[0])
    _take_last_linear(head.fc, server_model)
    return head


def _redrawn(module: nn.Module) -> nn.Module:
    """Draw the trainable weights of ``module`` anew, each layer by its own rule, and return it."""
    kept = {name: value.clone() for name, value in fixed_state(module).items()}
    for name, layer in module.named_modules():
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        reset = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
        if reset is None:
            raise UserError(
                f"layer {name!r} ({type(layer).__name__}) cannot draw its weights anew: it has no "
                "reset_parameters; use auxiliary.initialise=server"
            )
        reset()
    module.load_state_dict(kept, strict=False)  # what is never trained stays the server's
    return module


def _take_linear(target: nn.Linear, server_model: nn.Module) -> bool:
    """Copy the weights of a server model that has no layer with parameters but one like it."""
    layers = [m for m in server_model.modules() if any(True for _ in m.parameters(recurse=False))]
    [first, *more] = layers
    return not more and _copy_linear(target, first)


def _take_last_linear(target: nn.Linear, server_model: nn.Module) -> None:
    """Copy the server model's last linear layer if it has the shape of ``target``."""
    linear = [module for module in server_model.modules() if isinstance(module, nn.Linear)]
    if linear:
        _copy_linear(target, linear[-1])


def _copy_linear(target: nn.Linear, source: nn.Module) -> bool:
    is_alike = (
        isinstance(source, nn.Linear)
        and source.weight.shape == target.weight.shape
        and source.bias is not None
    )
    if is_alike:
        target.load_state_dict(source.state_dict())
    return is_alike
