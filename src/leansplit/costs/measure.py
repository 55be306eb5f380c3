"""What a step really costs: counted FLOPs and the peak of live tensor bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def count_flops(step: Callable[[], object]) -> int:
    """Run ``step`` and return its FLOPs by torch's own counter.

    A multiply-accumulate counts as 2; matrix products and convolutions count, elementwise
    operations do not.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


def peak_tensor_bytes(step: Callable[[], object]) -> int:
    """Run ``step`` and return the most bytes of tensor storage that were alive at once.

    Counted are the storages that any operation reads or writes, parameters and batch included;
    not counted are the workspaces inside an operation and the interpreter.
    """
    live = _LiveStorage()
    with live:
        step()
    return live.peak_bytes


class _LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[reference.cdata] = (reference, storage.nbytes())
        self._alive = {
            key: entry
            for key, entry in self._alive.items()
            if not entry[0].expired()  # type: ignore[no-untyped-call]
        }
        total = sum(num_bytes for _, num_bytes in self._alive.values())
        self.peak_bytes = max(self.peak_bytes, total)
        return result
