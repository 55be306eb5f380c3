"""Tensors as safetensors bytes, at the price of a copy.

``safetensors.torch.save`` gives the same bytes and looks for tensors that share memory on its way,
which for a client's few small tensors takes ten times as long as the bytes do.
"""

from __future__ import annotations

from collections.abc import Mapping

from safetensors import TensorSpec, serialize
from torch import Tensor


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return named tensors, and string metadata, as safetensors; any device, any strides."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tensor.shape,
            data_ptr=tensor.data_ptr(),  # of memory that `kept` holds until the bytes are there
            data_len=tensor.nbytes,
        )
        for name, tensor in kept.items()
    }
    return bytes(serialize(specs, metadata))
