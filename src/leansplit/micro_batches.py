"""A batch run a few samples at a time, so that the activations of few are held at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def run_in_parts(run: Callable[[Tensor], Tensor], inputs: Tensor, size: int) -> Tensor:
    """Return ``run(inputs)`` [B, ...], computed for ``size`` samples at a time; 0 = all at once.

    Parts are written into one tensor: joining them would hold the outputs twice.
    """
    if not size or size >= len(inputs):
        return run(inputs)
    outputs: Tensor | None = None
    for first in range(0, len(inputs), size):
        part = run(inputs[first : first + size])
        if outputs is None:
            outputs = part.new_empty((len(inputs), *part.shape[1:]))
        outputs[first : first + size] = part
        del part  # before the next one is run
    assert outputs is not None
    return outputs
