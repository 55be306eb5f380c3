"""What a step really costs: counted FLOPs, and the peak of live tensor bytes with what they hold.

One watcher serves real tensors and those without values (:mod:`.hollow`), so a prediction counts
what a measurement counts.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from leansplit.allocation import MemoryKind, allocated_for
from leansplit.costs.flop_formulas import FLOP_FORMULAS, UNCOUNTED
from leansplit.telling import moments_of, watching


@dataclass(frozen=True, kw_only=True)
class ClientStep:
    """One step of a client, to be measured, and what the client holds from step to step.

    Attributes:
        run: takes the step.
        weights: what a device keeps of the model, trained or not, whether the step reads it or not.
        batch: inputs and labels.
        optimizers: that take the step.
        has_moments: whether their moments are there before the step, as after one that kept them.
    """

    run: Callable[[], object]
    weights: Sequence[Tensor] = ()
    batch: Sequence[Tensor] = ()
    optimizers: Sequence[torch.optim.Optimizer | None] = ()
    has_moments: bool = True

    def __call__(self) -> object:
        """Take the step."""
        return self.run()


@dataclass(frozen=True)
class StepCosts:
    """What one step costs.

    Attributes:
        flops: a multiply-accumulate counts 2, elementwise operations nothing
            (:mod:`.flop_formulas`).
        rule_flops: by the rule that a backward pass costs twice its forward pass, which is wrong
            where weights are frozen or inputs need no gradient.
        peak_memory_bytes: live tensor storage at its peak.
        peak_memory: that peak by what it is held for.
        repeated_flops: of passes that messages alone make necessary, not in ``flops``.
    """

    flops: int
    rule_flops: int
    peak_memory_bytes: int
    peak_memory: Mapping[MemoryKind, int]
    repeated_flops: int = 0


def measure_step(step: ClientStep) -> StepCosts:
    """Take ``step`` once and return its costs; moments that are kept exist, as after the first.

    Trained weights may change, also before the step: give it a copy.
    """
    if step.has_moments:
        for optimizer in step.optimizers:
            create_moments(optimizer)
    with _Watch() as watch:
        watch.hold("weights", step.weights)
        watch.hold("batch", step.batch)
        for optimizer in step.optimizers:
            watch.hold("optimizer_state", moments_of(optimizer))
        with watch.naming_gradients(step.optimizers):
            step.run()
    return StepCosts(
        watch.flops, watch.rule_flops, watch.peak_bytes, watch.peak_kinds, watch.repeated_flops
    )


def count_flops(step: Callable[[], object]) -> int:
    """Run ``step`` and return its FLOPs by torch's formulas, the CPU's attention included.

    A multiply-accumulate counts as 2; matrix products, convolutions and attention count,
    elementwise operations do not.
    """
    with _Watch() as watch:
        step()
    return watch.flops


def peak_tensor_bytes(step: Callable[[], object]) -> int:
    """Run ``step`` and return the most bytes of tensor storage that were alive at once.

    Counted are the storages that any operation reads or writes, parameters and batch included;
    not counted are the workspaces inside an operation and the interpreter.
    """
    with _Watch() as watch:
        step()
    return watch.peak_bytes


def held_weights(model: nn.Module, *, but_trained: bool = False) -> list[Tensor]:
    """Return parameters and buffers; without trained parameters where a vector stands for them."""
    parameters = [p for p in model.parameters() if not (but_trained and p.requires_grad)]
    return [*parameters, *model.buffers()]


def create_moments(optimizer: torch.optim.Optimizer | None) -> None:
    """Take a step along a gradient of zero: torch creates moments at the first step."""
    if optimizer is None:
        return
    for parameter in _parameters(optimizer):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"] if _is_trained(p))


def _is_trained(parameter: Tensor) -> bool:
    """Say whether gradients come to a tensor: through autograd, or as estimates."""
    return parameter.requires_grad or not isinstance(parameter, nn.Parameter)


_logger = logging.getLogger("leansplit")
_aten = torch.ops.aten
# What torch's counter leaves alone: questions about a tensor, not computation.
_QUESTIONS = frozenset(
    {
        _aten.sym_is_contiguous.default,
        _aten.is_contiguous.default,
        _aten.is_contiguous.memory_format,
        _aten.is_strides_like_format.default,
        _aten.is_non_overlapping_and_dense.default,
        _aten.size.default,
        _aten.sym_size.default,
        _aten.stride.default,
        _aten.sym_stride.default,
        _aten.storage_offset.default,
        _aten.sym_storage_offset.default,
        _aten.numel.default,
        _aten.sym_numel.default,
        _aten.dim.default,
        torch.ops.prim.layout.default,
    }
)


class _Held:
    """A live storage: its size, what it is for, and elements and width of the tensor seen first."""

    __slots__ = ("kind", "num_bytes", "reference", "shape")

    def __init__(
        self,
        reference: weakref.ref[Any],
        num_bytes: int,
        kind: MemoryKind | None,
        shape: tuple[int, int],
    ) -> None:
        self.reference, self.num_bytes, self.kind, self.shape = reference, num_bytes, kind, shape


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation: counts FLOPs, and follows storages from when they are seen to the end.

    Operations that are made of others are taken apart, as torch's counter does, so what they hold
    on their way is seen too; but not those that also have a kernel of their own, which rounds
    otherwise than their parts.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.rule_flops = self.repeated_flops = self.peak_bytes = 0
        self.is_repeating = False
        self.peak_kinds: dict[MemoryKind, int] = {}
        self._bytes = 0
        self._kinds: dict[MemoryKind, int] = {}
        self._held: dict[int, _Held] = {}
        self._logits: set[tuple[int, int]] = set()
        self._elementary: set[Any] = set()
        self._named: set[Any] = set()
        self._is_stepping = False

    def __enter__(self) -> _Watch:
        if not watching or watching[-1] is not self:  # it is entered again to take things apart
            watching.append(self)
            self._hooks = [
                register_optimizer_step_pre_hook(self._optimizer_starts),
                register_optimizer_step_post_hook(self._optimizer_ends),
            ]
            self._depth = 0
        self._depth += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if not self._depth:
            watching.pop()
            for hook in self._hooks:
                hook.remove()

    def hold(self, kind: MemoryKind, tensors: Iterable[Tensor]) -> None:
        """Count ``tensors`` from now on, whether they are used or not."""
        for tensor in tensors:
            self._see(tensor, kind)
        self._note_peak()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count ``tensors``, from now on."""
        for tensor in tensors:
            held = self._see(tensor, None)
            if held is not None:
                self._rename(held, None)

    @contextmanager
    def naming_gradients(
        self, optimizers: Sequence[torch.optim.Optimizer | None]
    ) -> Iterator[None]:
        """Know the gradients that autograd accumulates for these optimizers' parameters."""
        parameters = {
            id(p): p for o in optimizers if o is not None for p in _parameters(o) if p.requires_grad
        }
        hooks = [
            p.register_post_accumulate_grad_hook(self._name_gradient)  # type: ignore[no-untyped-call]
            for p in parameters.values()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def counts(self) -> tuple[int, ...]:
        """Return the FLOPs so far, of each kind."""
        return self.flops, self.rule_flops, self.repeated_flops

    def count_again(self, since: tuple[int, ...], times: int) -> None:
        """Count the FLOPs since then, which :meth:`counts` returned, so many times more."""
        again = [now + times * (now - then) for now, then in zip(self.counts(), since, strict=True)]
        self.flops, self.rule_flops, self.repeated_flops = again

    def name_logits(self, outputs: Tensor) -> None:
        """Count activations with the shape of ``outputs`` as logits, earlier and later ones."""
        shape = _shape(outputs)
        self._logits.add(shape)
        for held in self._held.values():
            if held.shape == shape and held.kind == "activations":
                self._rename(held, "logits")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _QUESTIONS:
            return NotImplemented
        if func is torch.ops.prim.device.default:  # asked at nearly every operation
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        if func not in self._elementary and isinstance(func, torch._ops.OpOverload):
            if not _has_kernel(func):
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            self._elementary.add(func)
        result = func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        kind = "optimizer_state" if self._is_stepping else allocated_for()
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, kind or "activations")  # what a copy is made of is no copy
        for tensor in _tensors(result):
            self._see(tensor, kind)
        self._note_peak()
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        operation = getattr(func, "_overloadpacket", None)
        count = FLOP_FORMULAS.get(operation)
        if count is None:
            if operation in UNCOUNTED and operation not in self._named:
                self._named.add(operation)
                _logger.warning("the FLOPs of %s are not counted: it has no formula", operation)
            return
        flops = count(*args, **kwargs, out_val=result)
        if self.is_repeating:
            self.repeated_flops += flops
            return
        self.flops += flops
        if torch._C._current_graph_task_id() == -1:  # not within a backward pass
            self.rule_flops += 3 * flops if torch.is_grad_enabled() else flops

    def _see(self, tensor: Tensor, kind: MemoryKind | None) -> _Held | None:
        if not isinstance(tensor, FakeTensor) and tensor.is_meta:
            return None  # it has no memory
        storage = tensor.untyped_storage()
        key = storage._cdata
        held = self._held.get(key)
        num_bytes = storage.nbytes()
        if held is not None:
            if held.num_bytes != num_bytes:
                self._add(held.kind, num_bytes - held.num_bytes)
                held.num_bytes = num_bytes
            return held
        shape = _shape(tensor)
        if kind == "activations" and shape in self._logits:
            kind = "logits"

        def is_freed(_: object) -> None:
            gone = self._held.pop(key)
            self._add(gone.kind, -gone.num_bytes)

        held = self._held[key] = _Held(weakref.ref(storage, is_freed), num_bytes, kind, shape)
        self._add(kind, num_bytes)
        return held

    def _add(self, kind: MemoryKind | None, num_bytes: int) -> None:
        if kind is None:
            return
        self._bytes += num_bytes
        self._kinds[kind] = self._kinds.get(kind, 0) + num_bytes

    def _note_peak(self) -> None:
        if self._bytes > self.peak_bytes:
            self.peak_bytes = self._bytes
            self.peak_kinds = {kind: size for kind, size in self._kinds.items() if size}

    def _rename(self, held: _Held, kind: MemoryKind | None) -> None:
        self._add(held.kind, -held.num_bytes)
        self._add(kind, held.num_bytes)
        held.kind = kind

    def _name_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        held = self._held.get(parameter.grad.untyped_storage()._cdata)
        if held is not None and held.kind == "activations":
            self._rename(held, "gradients")

    def _optimizer_starts(self, *_: Any) -> None:
        self._is_stepping = True

    def _optimizer_ends(self, *_: Any) -> None:
        self._is_stepping = False


def _has_kernel(func: torch._ops.OpOverload) -> bool:
    """Say whether an operation runs as one kernel, as it does where nobody watches."""
    has: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")  # type: ignore[no-untyped-call]
    return has


def _shape(tensor: Tensor) -> tuple[int, int]:
    return tensor.numel(), tensor.shape[-1] if tensor.ndim else 1


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
