"""Cut a model in two after a named layer: the client model below the cut, the server model above.

One mechanism serves every model. To cut after ``layer1.0``, only the modules that contain it (the
model and ``layer1``) are *opened*: their ``forward`` is traced once with ``torch.fx``. All other
modules are called whole, so a block that cannot be traced may stand on either side of a cut, and
nested ``nn.Sequential`` can always be cut. The halves share the model's modules and names, and
hold their program as plain data: they can be copied and pickled wherever their layers can.
Tracing fixes what an opened ``forward`` decides in Python, except that ``self.training`` may be
handed on, as in ``F.dropout(x, training=self.training)``.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from leansplit.errors import UserError, did_you_mean, require_choice
from leansplit.models.traced_part import TracedPart
from leansplit.parameters import trainable_parameters

_MAX_NAMED = 5
_TUPLE_LAYERS = (nn.RNNBase, nn.MultiheadAttention)  # others show it by how they are used
# What may be dropped when nobody uses the result. Anything else might act in place, so it stays.
_PURE_TARGETS = (getattr, operator.getitem, "size", "dim", "numel")


@dataclass(frozen=True)
class SplitModel:
    """The two halves of one model; ``split_at`` makes it.

    Attributes:
        client_model: the layers up to and including ``cut_layer``; returns the smashed data.
        server_model: the layers above it; takes the smashed data as its only argument.
        cut_layer: qualified name of the last client-side module.
        has_mask: whether z carries an attention mask; see :mod:`leansplit.sequences`.
        frozen_stays: whether states leave out what is never trained, which every process loads from
            the same source.
    """

    client_model: nn.Module
    server_model: nn.Module
    cut_layer: str
    _composition: nn.Module | None = field(default=None, repr=False, compare=False)
    has_mask: bool = False
    frozen_stays: bool = False

    @property
    def full_model(self) -> nn.Module:
        """Client model, then server model, on the same parameters, named as in the unsplit model.

        It can be cut again, after any layer that the unsplit model could be cut after. Halves put
        together by hand are chained, which puts ``0.`` and ``1.`` before the names.
        """
        return self._composition or nn.Sequential(self.client_model, self.server_model)

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return both halves' state under the names, and in the order, of the unsplit model."""
        halves = self.client_model, self.server_model
        state = {name: value for half in halves for name, value in half.state_dict().items()}
        if self.frozen_stays:
            trained = {name for half in halves for name in trainable_parameters(half)}
            state = {name: value for name, value in state.items() if name in trained}
        known = [name for name in self.full_model.state_dict() if name in state]
        return {name: state[name] for name in dict.fromkeys([*known, *state])}

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy ``state`` into both halves; nothing is changed if it does not fit.

        Raises:
            UserError: naming missing and unexpected keys, and tensors of another shape.
        """
        own = self.full_state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        shapes = [(name, state[name].shape, own[name].shape) for name in own if name in state]
        wrong = [
            f"{name} {tuple(got)}, not {tuple(has)}" for name, got, has in shapes if got != has
        ]
        if missing or unexpected or wrong:
            raise UserError(
                f"this state is not that of the model cut at {self.cut_layer!r}: missing "
                f"{_few(missing)}; unexpected {_few(unexpected)}; of wrong shape {_few(wrong)}"
            )
        for half in (self.client_model, self.server_model):
            held = {name: state[name] for name in half.state_dict() if name in state}
            half.load_state_dict(held, strict=not self.frozen_stays)


@runtime_checkable
class CutsItself(Protocol):
    """A language model: cut after a block, its smashed data carry a mask, its base stays put."""

    def cut_layers(self) -> list[str]:
        """Return the allowed cuts in forward order."""
        ...

    def halves_at(self, cut_layer: str) -> tuple[nn.Module, nn.Module]:
        """Return client and server model at an allowed cut, on the model's own modules."""
        ...


def split_at(model: nn.Module, cut_layer: str) -> SplitModel:
    """Cut ``model`` after the module called ``cut_layer`` (as in ``model.named_modules()``).

    The halves share the modules of ``model``, which is left as it was. Only the output of
    ``cut_layer`` crosses. Arguments of ``model.forward`` that have a default keep that default.

    Example:
        >>> split = split_at(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "1")
        >>> list(split.server_model.state_dict())
        ['2.weight', '2.bias']

    Raises:
        UserError: if there is no such module, or no cut is possible there: a half would be empty,
            the server could train nothing, parameters would sit on both sides, anything but one
            tensor would cross, or the model cannot be traced.
    """
    if isinstance(model, CutsItself):
        client_model, server_model = model.halves_at(
            require_choice("cut layer", cut_layer, model.cut_layers())
        )
        return SplitModel(
            client_model, server_model, cut_layer, model, has_mask=True, frozen_stays=True
        )
    if cut_layer not in {name for name, _ in model.named_modules(remove_duplicate=False) if name}:
        raise UserError(
            f"unknown cut layer {cut_layer!r}; " + did_you_mean(cut_layer, cut_layers(model))
        )
    try:
        return _cut(model, cut_layer)
    except UserError as error:
        raise UserError(
            f"cannot cut {type(model).__name__} after {cut_layer!r}: {error}; "
            f"{_nearby(model, cut_layer)}"
        ) from error


def cut_layers(model: nn.Module) -> list[str]:
    """Return the allowed cuts in forward order; a stage follows the layers inside it.

    Raises:
        UserError: if ``model.forward`` itself cannot be traced.
    """
    if isinstance(model, CutsItself):
        return model.cut_layers()
    return [name for name in _forward_order(model) if _allows_cut(model, name)]


class _OpeningTracer(fx.Tracer):
    """Traces into the opened modules only, and records where they read ``self.training``."""

    proxy_buffer_attributes = True  # else `self.count += 1` would act on the user's buffer

    def __init__(self, opened: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return all(m is not module for module in self._opened.values())

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        for name, module in self._opened.items():
            flag = self.create_proxy("get_attr", f"{name}.training".lstrip("."), (), {})
            module.__dict__["training"] = flag
        required = [
            parameter.name
            for parameter in list(inspect.signature(root_fn).parameters.values())[1:]
            if parameter.default is parameter.empty and not parameter.kind.name.startswith("VAR_")
        ]
        if isinstance(self.root, TracedPart):
            required = list(self.root.input_names)
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in required]
        return root_fn, [self.root, *inputs]


def _trace(model: nn.Module, opened_names: Sequence[str]) -> tuple[nn.Module, fx.Graph]:
    """Trace ``model`` with the named modules (outermost first) opened; it is not changed.

    Returns a root, in which only opened modules are (shallow) copies, and its graph.

    Raises:
        UserError: if the forward of an opened module cannot be traced faithfully.
    """
    opened = {"": _shell(model)}
    for name in opened_names:
        parent, _, own_name = name.rpartition(".")
        opened[name] = opened[parent]._modules[own_name] = _shell(model.get_submodule(name))
    tracer = _OpeningTracer(opened)
    try:
        if "forward" in vars(model) or model._forward_hooks or model._forward_pre_hooks:
            raise TypeError("it is replaced or hooked")
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            graph = tracer.trace(opened[""])
            if not torch.equal(before, torch.get_rng_state()):
                raise ValueError("it draws random numbers of a fixed shape")
        for name, shell in opened.items():
            shell.__dict__["training"] = model.get_submodule(name).training
            if any(isinstance(v, fx.Proxy) for v in {**vars(shell), **shell._buffers}.values()):
                raise ValueError("it assigns to its own attributes")
    except Exception as error:  # whatever the user's forward raises on symbolic values
        where, kind = next(reversed(tracer.module_stack.values()), ("", type(model)))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{kind.__name__}.forward{f' of {where!r}' if where else ''} cannot be traced by "
            f"torch.fx ({reason}); write it as an nn.Sequential of stages, or choose one of "
            "cut_layers(model)"
        ) from error
    graph.eliminate_dead_code(lambda n: n.op != "get_attr" and n.target not in _PURE_TARGETS)
    return opened[""], graph


def _cut(model: nn.Module, name: str) -> SplitModel:
    """Cut after the module ``name``; the errors are bare reasons, which ``split_at`` completes."""
    root, graph = _trace(model, _ancestors(name))
    module = root.get_submodule(name)
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    layers = [node for node in nodes if node.op == "call_module"]
    calls = [node for node in layers if root.get_submodule(str(node.target)) is module]
    if len(calls) != 1:
        raise UserError(f"forward calls it {len(calls)} times, and a cut needs exactly one call")
    cut, output = calls[0], graph.output_node()
    below = {cut}  # and all that it depends on
    for node in reversed(graph.nodes):
        if not below.isdisjoint(node.users):
            below.add(node)
    # Reading a parameter costs nothing, so both sides may do it; ties are refused further down.
    shared = {n for n in below if n.op == "get_attr" and not below.issuperset(n.users)}
    above = [node for node in nodes if node not in below or node in shared]
    needed = dict.fromkeys(value for node in [*above, output] for value in node.all_input_nodes)
    crossing = [_describe(value) for value in needed if value not in {cut, *above}]
    if crossing:
        raise UserError(
            f"the server would also need {_few(crossing)}, but only the output of the cut layer "
            "can cross (a skip connection passes by the cut)"
        )
    if _is_structured(module, cut):
        raise UserError("it returns several values, and exactly one tensor can cross")
    if below.issuperset(layers):
        raise UserError("nothing is left for the server model")
    client_model = TracedPart(root, [node for node in nodes if node in below], inputs, cut)
    client_model.register_forward_hook(_require_one_tensor)
    server_model = TracedPart(root, above, [cut.name], output.args[0])
    if not any(parameter.requires_grad for parameter in server_model.parameters()):
        raise UserError("the server model would have no trainable parameters")
    client_ids, server_ids = ({id(t) for _, t in _tensors(m)} for m in (client_model, server_model))
    tied = [key for key, tensor in _tensors(model) if id(tensor) in client_ids & server_ids]
    if tied:
        raise UserError(f"both halves would use {_few(tied)}; untie them, or cut elsewhere")
    held = {**client_model.state_dict(), **server_model.state_dict()}
    unused = [key for key in model.state_dict() if key not in held]
    if unused:
        raise UserError(f"forward never uses {_few(unused)}; remove them from the model")
    return SplitModel(client_model, server_model, name, _whole(model))


def _whole(model: nn.Module) -> TracedPart:
    """Return ``model`` as a traced part that opens nothing below it, so it can be cut anywhere."""
    root, graph = _trace(model, [])
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    return TracedPart(root, nodes, inputs, graph.output_node().args[0])


def _is_structured(module: nn.Module, call: fx.Node) -> bool:
    """Say whether a module shows itself to return a tuple or a mapping, not one tensor."""
    keys = [user.args[1] if user.target is operator.getitem else None for user in call.users]
    if isinstance(module, _TUPLE_LAYERS) or (keys and all(isinstance(k, int | str) for k in keys)):
        return True
    with contextlib.suppress(UserError):  # a module that cannot be traced shows it when it runs
        return not isinstance(_trace(module, [])[1].output_node().args[0], fx.Node)
    return False


def _require_one_tensor(_client_model: nn.Module, _inputs: Any, smashed_data: Any) -> None:
    if not isinstance(smashed_data, Tensor):
        raise UserError(
            f"the cut layer returned {type(smashed_data)}; exactly one tensor can cross"
        )


def _forward_order(model: nn.Module, inside: str = "") -> list[str]:
    """Return the modules that are called, in the order in which they finish."""
    _, graph = _trace(model, [*_ancestors(inside), inside] if inside else [])
    order: list[str] = []
    for name in dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module"):
        if name.startswith(f"{inside}." if inside else ""):
            if any(True for _ in model.get_submodule(name).children()):
                with contextlib.suppress(UserError):  # a block that cannot be traced has no cuts
                    order += _forward_order(model, name)
            order.append(name)
    return order


def _allows_cut(model: nn.Module, name: str) -> bool:
    with contextlib.suppress(UserError):
        return _cut(model, name).cut_layer == name
    return False


def _nearby(model: nn.Module, name: str) -> str:
    """Return a phrase that names the allowed cuts just before and after ``name``."""
    order = _forward_order(model)
    around = {name, *_ancestors(name)}
    at = min((i for i, n in enumerate(order) if n in around or n.startswith(f"{name}.")), default=0)
    sides = (reversed(order[:at]), order[at:])
    near = [next((repr(n) for n in side if _allows_cut(model, n)), None) for side in sides]
    return f"nearest allowed cuts: {_few([n for n in near if n])}"


def _shell(module: nn.Module) -> nn.Module:
    """Return a copy that shares layers and tensors, but can be written to."""
    shell = type(module).__new__(type(module))
    for name, value in vars(module).items():
        shell.__dict__[name] = value.copy() if isinstance(value, dict | list) else value
    return shell


def _describe(value: fx.Node) -> str:
    kinds = {"placeholder": "the model's input", "call_module": "the output of"}
    name = str(value.target) if value.op in kinds else value.name
    return f"{kinds.get(value.op, 'the output of the operation')} {name!r}"


def _ancestors(name: str) -> list[str]:
    """Return the names of the modules that contain ``name``, outermost first."""
    return [name[:at] for at, character in enumerate(name) if character == "."]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and buffers by name, tied ones under each of their names."""
    kinds = (model.named_parameters, model.named_buffers)
    return [pair for kind in kinds for pair in kind(remove_duplicate=False)]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more if names else "none"
