"""Named parameter sets laid out as one vector, in one frozen order."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from leansplit.allocation import allocated_as

M = TypeVar("M", bound=nn.Module)

ParameterDict = dict[str, Tensor]
"""Qualified parameter name -> tensor."""


@dataclass(frozen=True)
class ParameterSpec:
    """The canonical layout of a parameter set: sorted by name, then row-major.

    The order fixes which element of a perturbation belongs to which weight, so it depends on
    nothing but names and shapes; registration order and grouping do not matter.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> ParameterSpec:
        """Describe ``parameters``."""
        names = tuple(sorted(parameters))
        return cls(names, tuple(tuple(parameters[name].shape) for name in names))

    @property
    def num_elements(self) -> int:
        """Number of scalars d in the set."""
        return sum(prod(shape) for shape in self.shapes)

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the float32 vector [d] of ``parameters``; always a copy."""
        if not self.names:
            return torch.zeros(0)
        return torch.cat([parameters[name].detach().reshape(-1) for name in self.names])

    def views(self, vector: Tensor) -> ParameterDict:
        """Return ``vector`` [d] as named tensors that share its memory."""
        views: ParameterDict = {}
        offset = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = prod(shape)
            views[name] = vector[offset : offset + size].view(shape)
            offset += size
        return views


def trainable_parameters(model: nn.Module) -> ParameterDict:
    """Return the parameters of ``model`` that ask for gradients, detached, sharing memory."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def num_trainable(model: nn.Module) -> int:
    """Return how many numbers of ``model`` ask for gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def fixed_state(model: nn.Module) -> ParameterDict:
    """Return what training never moves and nobody sends: frozen parameters and buffers."""
    trained = trainable_parameters(model)
    return {name: value for name, value in model.state_dict().items() if name not in trained}


def load_parameters_(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copy ``parameters`` into the parameters of ``model`` that have these names."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)


def to_send(parameters: Mapping[str, Tensor]) -> ParameterDict:
    """Return a copy that later steps do not move."""
    with allocated_as(None):
        return {name: value.clone() for name, value in parameters.items()}


def load_state_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy ``state``, all of the model's or a part, into the model.

    Raises:
        KeyError: if the model has no tensor of a name.
    """
    if unexpected := model.load_state_dict(dict(state), strict=False).unexpected_keys:
        raise KeyError(f"the model has no {unexpected[0]!r}")


def copied(module: M) -> M:
    """Return a copy with trained parameters of its own; frozen ones, often larger, are shared."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    return copy.deepcopy(module, {id(parameter): parameter for parameter in frozen})


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that name the exact bits of ``tensors`` (BLAKE2b, names included)."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
