"""A part of a traced model as plain data: steps over modules held under their full-model names."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg


class TracedPart(nn.Module):
    """Some steps of a traced model, over modules held under their full-model names.

    Values are freed after their last use, so that inference peaks as in the unsplit model.
    """

    def __init__(self, root: nn.Module, nodes: list[fx.Node], inputs: list[str], output: Any):
        """Take the steps of ``nodes``, from the values ``inputs`` to the value(s) ``output``."""
        super().__init__()
        self._inputs, self._output = tuple(inputs), map_arg(output, _refer)
        steps: list[_Step] = []
        needed: set[fx.Node] = set()
        map_arg(output, needed.add)
        for node in reversed(nodes):
            frees = [v.name for v in (*node.all_input_nodes, node) if v not in needed]
            needed.update(node.all_input_nodes)
            args, kwargs = map_arg(node.args, _refer), map_arg(node.kwargs, _refer)
            steps.insert(0, _Step(node.name, node.op, node.target, args, kwargs, tuple(frees)))
        self._steps = tuple(steps)
        _fill(self, root, _used(root, nodes))

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
        return map_aggregate(self._output, look_up)


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


def _used(root: nn.Module, nodes: Iterable[fx.Node]) -> set[int]:
    """Return the ids of the modules and tensors that the nodes touch."""
    used = set()
    for node in nodes:
        if node.op in ("call_module", "get_attr"):
            value = operator.attrgetter(str(node.target))(root)
            if isinstance(value, bool):  # the flag `block.training`: an empty `block` will do
                value = vars(root.get_submodule(str(node.target).rpartition(".")[0]))
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
