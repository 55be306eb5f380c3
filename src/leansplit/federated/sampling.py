"""Who takes part, and with which samples: functions of (root seed, round), nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leansplit.errors import UserError
from leansplit.noise import derive_seed, numpy_generator
from leansplit.sequences import trim


def require_cohort(cohort_size: int, num_clients: int) -> None:
    """Raise ``UserError`` if a cohort of that size cannot be drawn."""
    if not 1 <= cohort_size <= num_clients:
        raise UserError(
            f"cohort of {cohort_size} cannot be drawn from {num_clients} clients; "
            f"choose a cohort between 1 and {num_clients}"
        )


def sample_cohort(
    root_seed: int, round: int, population: Sequence[int], cohort_size: int
) -> list[int]:
    """Draw ``cohort_size`` of the ``population`` uniformly without replacement.

    Any round's cohort can be drawn without drawing the earlier ones.

    Returns:
        Client ids in ascending order.

    Raises:
        UserError: if the cohort is empty or larger than the population.
    """
    require_cohort(cohort_size, len(population))
    generator = numpy_generator(derive_seed(root_seed, "cohort", round=round))
    chosen = generator.permutation(len(population))[:cohort_size]
    ordered = sorted(population)
    return sorted(ordered[int(index)] for index in chosen)


def service_order(root_seed: int, round: int, cohort: Sequence[int]) -> list[int]:
    """Return the cohort in the order in which a sequential server serves it (SFLV2).

    A fresh random permutation every round, as in the authors' code: with skewed labels the
    server forgets the clients that it served first.
    """
    generator = numpy_generator(derive_seed(root_seed, "service-order", round=round))
    ordered = sorted(cohort)
    return [ordered[int(index)] for index in generator.permutation(len(ordered))]


def sample_order(
    root_seed: int, round: int, client_id: int, num_samples: int
) -> npt.NDArray[np.int64]:
    """Return the order in which a client goes through its samples in a round, int64 [n]."""
    seed = derive_seed(root_seed, "batch", round=round, client_id=client_id)
    return numpy_generator(seed).permutation(num_samples)


def batch_at(
    order: npt.NDArray[np.int64], local_step: int, batch_size: int
) -> npt.NDArray[np.int64]:
    """Return which samples a step's batch holds; ``order`` is that of the round."""
    size = min(batch_size, len(order))
    first = local_step * size
    return order[np.arange(first, first + size) % len(order)]


def batch_indices(
    root_seed: int,
    round: int,
    client_id: int,
    local_step: int,
    *,
    num_samples: int,
    batch_size: int,
) -> npt.NDArray[np.int64]:
    """Return which of a client's ``num_samples`` samples its batch holds.

    Each round the client shuffles its data afresh and its local steps take consecutive slices,
    starting over at the end, so ``local_steps * batch_size == num_samples`` is one epoch. A
    client with fewer samples than a batch uses all of them, each once.

    Returns:
        int64 array of shape [min(batch_size, num_samples)].
    """
    order = sample_order(root_seed, round, client_id, num_samples)
    return batch_at(order, local_step, batch_size)


class ClientData(Protocol):
    """A client's samples.

    Data that would have to be copied to have them in one tensor may also have ``len()`` and
    ``samples_at(positions)``, which returns (inputs, labels) of some; batches are then taken by it.
    """

    @property
    def inputs(self) -> Tensor:
        """Shape [n, ...]."""
        ...

    @property
    def labels(self) -> Tensor:
        """Shape [n, ...]."""
        ...


def num_samples_of(data: ClientData) -> int:
    """Return how many samples a client holds."""
    counted: Any = data if hasattr(data, "samples_at") else data.labels
    return len(counted)


def samples_at(data: ClientData, positions: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return (inputs, labels) of a client's samples at ``positions``, as long as they need to be.

    Texts lose positions that are padding in all of them.
    """
    indices = torch.from_numpy(positions)
    own: Callable[[Tensor], tuple[Tensor, Tensor]] | None = getattr(data, "samples_at", None)
    return trim(*(own(indices) if own else (data.inputs[indices], data.labels[indices])))


def take_batch(
    data: ClientData,
    root_seed: int,
    round: int,
    client_id: int,
    local_step: int = 0,
    *,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Return the (inputs, labels) of one step of one client; see :func:`batch_indices`."""
    positions = batch_indices(
        root_seed,
        round,
        client_id,
        local_step,
        num_samples=num_samples_of(data),
        batch_size=batch_size,
    )
    return samples_at(data, positions)
