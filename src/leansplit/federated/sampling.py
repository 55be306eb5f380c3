"""Who takes part, and with which samples: functions of (root seed, round), nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
    generator = numpy_generator(derive_seed(root_seed, "batch", round=round, client_id=client_id))
    order = generator.permutation(num_samples)
    size = min(batch_size, num_samples)
    first = local_step * size
    return order[np.arange(first, first + size) % num_samples]


class ClientData(Protocol):
    """A client's samples."""

    @property
    def inputs(self) -> Tensor:
        """Shape [n, ...]."""
        ...

    @property
    def labels(self) -> Tensor:
        """Shape [n, ...]."""
        ...


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
    indices = torch.from_numpy(
        batch_indices(
            root_seed,
            round,
            client_id,
            local_step,
            num_samples=len(data.labels),
            batch_size=batch_size,
        )
    )
    return trim(data.inputs[indices], data.labels[indices])
