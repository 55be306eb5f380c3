"""A part of a traced model: some of its steps as plain data, over the model's own modules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg


class TracedPart(nn.Module):
    """Some steps of a traced model, over modules held under their full-model names.

    Values are freed after their last use, so that inference peaks as in the unsplit model. One
    tensor is returned as a message would bring it, contiguous, whatever layout the steps used.
    """

    def __init__(self, root: nn.Module, nodes: list[fx.Node], inputs: list[str], output: Any):
        """Take the steps of ``nodes``, from the values ``inputs`` to the value(s) ``output``."""
        steps: list[_Step] = []
        needed: set[fx.Node] = set()
        map_arg(output, needed.add)
        for node in reversed(nodes):
            frees = [v.name for v in (*node.all_input_nodes, node) if v not in needed]
            needed.update(node.all_input_nodes)
            args, kwargs = map_arg(node.args, _refer), map_arg(node.kwargs, _refer)
            steps.insert(0, _Step(node.name, node.op, node.target, args, kwargs, tuple(frees)))
        self._set_up(root, steps, inputs, map_arg(output, _refer))

    def _set_up(
        self, root: nn.Module, steps: Sequence[_Step], inputs: Sequence[str], output: Any
    ) -> None:
        super().__init__()
        self._inputs, self._output, self._steps = tuple(inputs), output, tuple(steps)
        _fill(self, root, _used(root, steps))

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the positional inputs."""
        return self._inputs

    def forward(self, *inputs: Any) -> Any:
        """Run the steps."""
        if len(inputs) != len(self._inputs):
            raise TypeError(f"takes the inputs {list(self._inputs)}, got {len(inputs)} of them")
        values = dict(zip(self._inputs, inputs, strict=True))

        def look_up(value: Any) -> Any:
            return values[value.name] if isinstance(value, _Reference) else value

        for step in self._steps:
            args, kwargs = map_aggregate((step.args, step.kwargs), look_up)
            if step.op == "call_method":
                values[step.name] = getattr(args[0], step.target)(*args[1:], **kwargs)
            elif step.op == "call_function":
                values[step.name] = step.target(*args, **kwargs)
            else:
                found = operator.attrgetter(step.target)(self)
                values[step.name] = found(*args, **kwargs) if step.op == "call_module" else found
            for name in step.frees:
                del values[name]
        result = map_aggregate(self._output, look_up)
        # In another memory format, what follows would round otherwise than behind a message.
        return result.contiguous() if isinstance(result, Tensor) else result

    def segments(self) -> list[nn.Module]:
        """Return the part as a chain of modules, cut wherever a single value is alive.

        A skip connection keeps a second value alive, so what it spans stays in one piece. A step
        that is one module is that module itself. What takes several inputs, or returns anything
        but its last value, is one piece.
        """
        # Parameters and flags are no values that cross: each piece reads what it uses.
        reads = {step.name: step for step in self._steps if step.op == "get_attr"}
        steps = [step for step in self._steps if step.name not in reads]
        if len(self._inputs) != 1 or not steps or self._output != _Reference(steps[-1].name):
            return [self]
        pieces: list[list[_Step]] = []
        alive, newest = set(self._inputs), self._inputs[0]
        for step in steps:
            if not pieces or (alive == {newest} and _may_begin_a_piece(step, self)):
                pieces.append([])
            pieces[-1].append(step)
            alive = (alive | {step.name}) - set(step.frees)
            newest = step.name
        if len(pieces) == 1 and len(self._steps) > 1:
            return [self]
        starts = [self._inputs[0], *(piece[-1].name for piece in pieces[:-1])]
        return [self._piece(*at, reads) for at in zip(pieces, starts, strict=True)]

    def prefixes(self) -> list[tuple[nn.Module | None, TracedPart]]:
        """Return the part's beginnings, each up to a step after which its value alone is alive.

        Returns:
            (the module that the last step calls, if it calls one; the beginning, which holds no
            module or tensor that its steps do not use), shortest first.
        """
        found: list[tuple[nn.Module | None, TracedPart]] = []
        alive = set(self._inputs)
        for at, step in enumerate(self._steps, 1):
            alive = (alive | {step.name}) - set(step.frees)
            if alive == {step.name}:
                called = self.get_submodule(step.target) if step.op == "call_module" else None
                found.append((called, self._of(self._steps[:at], self._inputs)))
        return found

    def _of(self, steps: Sequence[_Step], inputs: Sequence[str]) -> TracedPart:
        """Return the part of this one that takes ``steps`` and returns the last one's value."""
        part = TracedPart.__new__(TracedPart)
        part._set_up(self, steps, inputs, _Reference(steps[-1].name))
        return part

    def _piece(self, steps: list[_Step], start: str, reads: Mapping[str, _Step]) -> nn.Module:
        [*_, last] = steps
        if len(steps) == 1 and last.op == "call_module" and _takes_only(last, start):
            module: nn.Module = operator.attrgetter(last.target)(self)
            return module
        if len(self._steps) == 1:
            return self
        named: set[str] = set()
        for step in steps:
            map_aggregate((step.args, step.kwargs), lambda v: named.add(getattr(v, "name", "")))
        used = [read for name, read in reads.items() if name in named]
        own = [replace(s, frees=tuple(n for n in s.frees if n not in reads)) for s in steps]
        return self._of([*used, *own], [start])


@dataclass(frozen=True)
class _Reference:
    """Stands for the value of an earlier step among the arguments of a step."""

    name: str


def _refer(node: fx.Node) -> Any:
    return _Reference(node.name)


@dataclass(frozen=True, slots=True)
class _Step:
    """One operation: what to call on what, and which values nobody needs afterwards."""

    name: str
    op: str
    target: Any  # qualified name, method name or function, by op
    args: Any
    kwargs: Any
    frees: tuple[str, ...]


def _takes_only(step: _Step, name: str) -> bool:
    return step.args == (_Reference(name),) and not step.kwargs


def _may_begin_a_piece(step: _Step, root: nn.Module) -> bool:
    """Refuse a step that overwrites its input, or that picks from several values."""
    return step.target is not operator.getitem and not _is_in_place(step, root)


def _is_in_place(step: _Step, root: nn.Module) -> bool:
    if step.op == "call_module":
        return bool(getattr(operator.attrgetter(step.target)(root), "inplace", False))
    name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
    is_named_so = name.endswith("_") or step.target in _IN_PLACE
    return is_named_so or bool(step.kwargs.get("inplace", False))


_IN_PLACE: tuple[Callable[..., Any], ...] = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.setitem,
)  # fmt: skip


def _used(root: nn.Module, steps: Iterable[_Step]) -> set[int]:
    """Return the ids of the modules and tensors that the steps touch."""
    used = set()
    for step in steps:
        if step.op in ("call_module", "get_attr"):
            value = operator.attrgetter(str(step.target))(root)
            if isinstance(value, bool):  # the flag `block.training`: an empty `block` will do
                value = vars(root.get_submodule(str(step.target).rpartition(".")[0]))
            used.add(id(value))
    return used


def _fill(part: nn.Module, source: nn.Module, used: set[int]) -> bool:
    """Give ``part`` the used modules and tensors below ``source``, in order; say if any were."""
    part.training = source.training
    for name, parameter in source._parameters.items():
        if id(parameter) in used:
            part.register_parameter(name, parameter)
    constants = {name: value for name, value in vars(source).items() if isinstance(value, Tensor)}
    for name, buffer in {**source._buffers, **constants}.items():
        if id(buffer) in used:
            is_saved = name in source._buffers and name not in source._non_persistent_buffers_set
            part.register_buffer(name, buffer, persistent=is_saved)
    for name, child in source._modules.items():
        if id(child) in used:
            part.add_module(name, child)
        elif child is not None and _fill(branch := nn.Module(), child, used):
            part.add_module(name, branch)
    return id(vars(source)) in used or bool(part._parameters or part._buffers or part._modules)
