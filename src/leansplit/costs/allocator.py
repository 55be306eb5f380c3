"""The peak memory of a step by the statistics of an accelerator's allocator."""

from __future__ import annotations

from typing import Protocol

import torch

from leansplit.costs.measure import ClientStep, create_moments
from leansplit.telling import moments_of


class Allocator(Protocol):
    """What is asked of it; ``torch.cuda`` is one."""

    def synchronize(self, device: torch.device) -> None:
        """Wait for what was started."""
        ...

    def memory_allocated(self, device: torch.device) -> int:
        """Return the bytes of live tensors."""
        ...

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        """Forget the peak so far."""
        ...

    def max_memory_allocated(self, device: torch.device) -> int:
        """Return the bytes of live tensors at their peak."""
        ...


def allocator_peak(step: ClientStep, device: torch.device, allocator: Allocator) -> int:
    """Take ``step`` once and return the peak of what the client holds, in bytes.

    That is what it keeps from step to step, whose size is known, and the most that the allocator
    handed out beside it during the step. So nothing that else lies on the device counts.
    Workspaces that libraries keep for good do not count either, if the step was taken before.
    """
    for optimizer in step.optimizers:
        create_moments(optimizer)
    kept = [*step.weights, *step.batch]
    for optimizer in step.optimizers:
        kept += moments_of(optimizer)
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in kept)}
    allocator.synchronize(device)
    allocator.reset_peak_memory_stats(device)
    before = allocator.memory_allocated(device)
    step.run()
    allocator.synchronize(device)
    return sum(storages.values()) + allocator.max_memory_allocated(device) - before
