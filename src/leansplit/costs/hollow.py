"""Tensors without values, which pass through the same steps as real ones and cost nothing to hold.

They are torch's fake tensors. What depends on values is answered by assumption: every position
holds a token, every label is wanted, two tensors are equal, and a number is 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)

from leansplit.errors import UserError
from leansplit.noise import blank_noise
from leansplit.telling import without_values

_aten = torch.ops.aten


class HollowTensors:
    """A world of tensors without values; those of two worlds do not mix.

    Example:
        >>> world = HollowTensors()
        >>> model = world.emptied(nn.Linear(4096, 4096, device="meta"))
        >>> with world.entered():
        ...     measure_step(...)
    """

    def __init__(self) -> None:
        self._mode = _World(allow_fallback_kernels=False, allow_non_fake_inputs=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make only tensors without values inside the block, and draw no noise.

        Raises:
            UserError: naming an operation that cannot be followed without values.
        """
        with warnings.catch_warnings():
            # Torch asks a tensor that is copied for its address, and warns that there is none.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            with self._mode, blank_noise(), without_values():
                yield

    def emptied(self, model: nn.Module) -> nn.Module:
        """Turn a model on the device ``meta`` into one of this world, on the CPU; returns it."""
        made: dict[int, Tensor] = {}

        def like(tensor: Tensor) -> Tensor:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
            )

        with self._mode, torch.no_grad():
            for module in _modules(model):
                for name, parameter in module._parameters.items():
                    if parameter is not None and not isinstance(parameter, FakeTensor):
                        new = made.get(id(parameter))
                        if new is None:
                            new = nn.Parameter(like(parameter), parameter.requires_grad)
                            made[id(parameter)] = new
                        module._parameters[name] = new  # type: ignore[assignment]
                for held in (module._buffers, vars(module)):  # some keep tensors as attributes
                    for name, value in [*held.items()]:
                        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
                            held[name] = like(value)
        return model


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """Return all modules, and those of a model that one of them stands in front of."""
    seen: set[int] = set()
    for module in model.modules():
        inner = module.__dict__.get("inner")
        for found in (module, *(inner.modules() if isinstance(inner, nn.Module) else ())):
            if id(found) not in seen:
                seen.add(id(found))
                yield found


class _World(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors, and answers to what they cannot know."""

    def __deepcopy__(self, memo: Any) -> _World:
        return self  # tensors that are copied with their module stay in this world

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        if func in _ANSWERS:
            if not any(isinstance(value, FakeTensor) for value in args):
                with unset_fake_temporarily():  # states of generators and the like are real
                    return func(*args, **kwargs)
            return _ANSWERS[func](*args, **kwargs)
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except (
            DataDependentOutputException,
            DynamicOutputShapeException,
            UnsupportedOperatorException,
        ) as error:
            raise UserError(
                f"this model cannot be planned: the operation {func} cannot be followed without "
                "values, since what it does or how large its result is depends on them; measure a "
                "run instead, or write the model without it"
            ) from error


def _number(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _everywhere(tensor: Tensor) -> Tensor:
    return tensor.new_empty((tensor.numel(), tensor.ndim), dtype=torch.int64)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _number,
    _aten.nonzero.default: _everywhere,
    _aten.equal.default: lambda one, other: True,
}
