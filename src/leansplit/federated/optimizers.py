"""Optimizers by name, and their state as plain tensors that can be stored, sent and compared."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from leansplit.allocation import allocated_as
from leansplit.errors import UserError, require_choice, require_positive

OptimizerName = Literal["sgd", "adamw"]
OPTIMIZERS: Final[tuple[str, ...]] = get_args(OptimizerName)
Lifetime = Literal["run", "round", "batch"]
LIFETIMES: Final[tuple[str, ...]] = get_args(Lifetime)
_PART_ELEMENTS: Final = 131_072


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer and how long its state lives."""

    name: OptimizerName = "sgd"
    """``sgd`` (with ``momentum``; 0 = plain) or ``adamw``."""
    lr: float = 0.1
    """Learning rate."""
    momentum: float = 0.0
    """SGD's heavy-ball momentum."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.999
    """AdamW's second-moment decay."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    weight_decay: float = 0.0
    """Decoupled for AdamW, added to the gradient for SGD."""
    lifetime: Lifetime = "run"
    """``run``: moments live as long as the run; ``round``: they start from zero every round;
    ``batch``: at every step."""

    def __post_init__(self) -> None:
        """Refuse values that no step can be taken with."""
        require_choice("optimizer", self.name, OPTIMIZERS)
        require_choice("optimizer lifetime", self.lifetime, LIFETIMES)
        require_positive("lr", self.lr)
        require_positive("eps", self.eps)
        for what in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, what) < 1:
                raise UserError(f"{what} must be in [0, 1), got {getattr(self, what)}")
        if self.name == "adamw" and self.momentum:
            raise UserError("adamw has no momentum; set beta1, or choose sgd")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"weight_decay must be at least 0, got {self.weight_decay}")

    @property
    def outlives_round(self) -> bool:
        """Whether moments go from one round to the next."""
        return self.lifetime == "run"

    @property
    def outlives_batch(self) -> bool:
        """Whether moments go from one step to the next within a round."""
        return self.lifetime != "batch"

    def kept_bytes(self, num_elements: int) -> int:
        """Return the bytes of the moments that a round leaves to the next."""
        if not (self.outlives_round and num_elements):
            return 0
        if self.name == "adamw":
            return 2 * 4 * num_elements + 4  # and the number of steps
        return 4 * num_elements if self.momentum else 0

    def has_moments(self, steps_in_round: int) -> bool:
        """Whether a step may find moments of a step before, with so many steps in each round."""
        return self.outlives_round or (self.outlives_batch and steps_in_round > 1)


class _Uncompiled:
    """The methods of an optimizer without what torch puts around them for its compiler.

    Those wrappers import the compiler to tell it to keep out, which takes longer than all other
    imports of a process that answers one message. It never sees our optimizers.
    """

    add_param_group: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad: Any = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict: Any = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _SGD(_Uncompiled, torch.optim.SGD):
    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _AdamW(_Uncompiled, torch.optim.AdamW):
    """torch's, but on a CPU it takes large parameters part by part, to the same bits.

    A step makes two temporary tensors as large as the parameter: memory that a lean client does
    not have, and that costs more to touch for the first time than the arithmetic takes.
    """

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:
        """Fill ``lists``: parameters, gradients, first, second, largest moments, step counts."""
        has_complex = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        whole = [list(each) for each in lists]
        for each in lists:
            each.clear()
        parameters, gradients, first, second, _, steps = whole
        for tensors in zip(parameters, gradients, first, second, steps, strict=True):
            for piece in _in_parts(*tensors):
                for each, part in zip((*lists[:4], lists[5]), piece, strict=True):
                    each.append(part)
        return has_complex


def _in_parts(
    parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of equal parts of an AdamW parameter, and for each the count of steps taken."""
    tensors = (parameter, gradient, first, second)
    size = parameter.numel()
    is_flat = all(t.device.type == "cpu" and t.is_contiguous() for t in tensors)
    if size <= _PART_ELEMENTS or not is_flat:
        yield *tensors, step
        return
    flat = [t.detach().view(-1) for t in tensors]
    for start in range(0, size, _PART_ELEMENTS):  # torch adds 1 to the count that it is given
        count = step.clone() if start else step
        yield *(t[start : start + _PART_ELEMENTS] for t in flat), count


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[Tensor]
) -> torch.optim.Optimizer | None:
    """Return torch's optimizer over ``parameters``; None if there is nothing to train."""
    parameters = list(parameters)
    if not parameters:
        return None
    optimizer: torch.optim.Optimizer
    if config.name == "adamw":
        optimizer = _AdamW(
            parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    else:
        optimizer = _SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    if config.lifetime == "batch":
        optimizer.register_step_post_hook(_forget)
    return optimizer


def _forget(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Make the next step a first step: torch creates moments when it finds none."""
    optimizer.state.clear()


def optimizer_state(optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Return the moments as named tensors, ``<parameter index>.<moment>``; empty if stateless."""
    if optimizer is None:
        return {}
    state: dict[int, dict[str, Tensor | None]] = optimizer.state_dict()["state"]
    with allocated_as(None):
        return {
            f"{index}.{moment}": value.detach().clone()
            for index, moments in state.items()
            for moment, value in moments.items()
            if value is not None
        }


def load_optimizer_state_(
    optimizer: torch.optim.Optimizer | None, state: Mapping[str, Tensor]
) -> None:
    """Put moments from :func:`optimizer_state` back."""
    if optimizer is None:
        return
    nested: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, moment = key.split(".", 1)
        nested.setdefault(int(index), {})[moment] = value.clone()
    full = optimizer.state_dict()
    full["state"] = nested
    optimizer.load_state_dict(full)
