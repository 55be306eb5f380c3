"""A device that is none, to test on any machine what must run on an accelerator.

It holds its values on the CPU, reports another device and refuses, as a real one does, to compute
with tensors that were made elsewhere.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

ELSEWHERE = torch.device("meta")  # a device that every build of torch knows, and nothing runs on
CPU = torch.device("cpu")
ATEN = torch.ops.aten
# What models and optimizers compute with, and noise, which is exact everywhere, does not.
PRODUCTS = (ATEN.convolution.default, ATEN.addmm.default, ATEN.mm.default)
ROUNDED = (
    *PRODUCTS,
    *(ATEN.add_.Tensor, ATEN.mul_.Tensor, ATEN.addcmul_.default, ATEN.addcdiv_.default),
    *(ATEN.lerp_.Scalar, ATEN.sub_.Tensor),
)


class Elsewhere(torch.Tensor):
    """A tensor that says it lives on ``ELSEWHERE``; its values are in ``held``, on the CPU."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=ELSEWHERE,
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    """Run one operation under the rules of devices: all operands in one place, but for copies,
    numbers (tensors without dimensions, elementwise) and indices.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    is_there = len(here) < len(tensors)
    if is_there and func not in (ATEN.copy_.default, ATEN._to_copy.default):
        if torch.Tag.pointwise in func.tags:
            here = [tensor for tensor in here if tensor.ndim]
        if func in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default):
            here = [tensor for tensor in here if tensor is args[0]]
        if here:
            shapes = [tuple(tensor.shape) for tensor in here]
            raise RuntimeError(f"{func}: tensors of shapes {shapes} are on another device")
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]) == ELSEWHERE
        kwargs = {**kwargs, "device": CPU}
    if func is ATEN.copy_.default:
        is_there = isinstance(args[0], Elsewhere)
    held_args, held_kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.held, (args, kwargs))
    out = func(*held_args, **held_kwargs)
    if not is_there:
        return out
    out = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class PretendedDevice(TorchDispatchMode):
    """Inside, ``ELSEWHERE`` is a device on which everything can be computed.

    Inference mode is played by ``no_grad``: it cannot make views of tensors of our own kind.

    Args:
        rounds_otherwise: results of models and optimizers end in the neighbour of the CPU's.

    Attributes:
        num_products: matrix products and convolutions that were computed there.
    """

    def __init__(self, *, rounds_otherwise=False):
        super().__init__()
        self._rounds_otherwise = rounds_otherwise
        self.num_products = 0

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(torch, "inference_mode", torch.no_grad)
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = compute(func, args, kwargs or {})
        self.num_products += func in PRODUCTS and isinstance(out, Elsewhere)
        is_rounded = self._rounds_otherwise and func in ROUNDED and isinstance(out, Elsewhere)
        if is_rounded and out.held.is_floating_point():
            out.held.copy_(out.held.nextafter(torch.tensor(float("inf"))))
        return out
