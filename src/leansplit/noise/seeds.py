"""Seeds by hashing: every random draw is named by a tuple, never by seed arithmetic.

Arithmetic such as ``seed * (i + 17) + i`` collides and correlates; a hash of the tuple
(root seed, purpose, round, client, step, direction) does not.
"""

from __future__ import annotations

import functools
import hashlib
import struct

import numpy as np

STREAM_VERSION = 1
"""Version of seed derivation and of the noise stream; changes whenever a byte would."""

_PERSON = b"leansplit-seed-1"  # domain separation, 16 bytes at most
NO_INDEX = -1
"""Stands for "this draw has no such index"."""


def derive_seed(
    root_seed: int,
    purpose: str,
    *,
    round: int = NO_INDEX,
    client_id: int = NO_INDEX,
    local_step: int = NO_INDEX,
    direction: int = NO_INDEX,
) -> int:
    """Return the 64-bit seed of one draw: a BLAKE2b hash of what the draw is for.

    Args:
        root_seed: the run's seed, any integer that fits in 64 signed bits.
        purpose: what the draw is for, such as ``"perturbation"``, ``"cohort"``, ``"batch"``.
        round: server round, 1-based.
        client_id: the client's id (= partition id).
        local_step: the step within the round, 0-based.
        direction: the direction within the step, 0-based.

    Returns:
        An integer in [0, 2**64).

    Example:
        >>> derive_seed(0, "cohort", round=1) != derive_seed(0, "cohort", round=2)
        True
    """
    message = struct.pack("<qqqqq", root_seed, round, client_id, local_step, direction)
    digest = hashlib.blake2b(message + purpose.encode(), digest_size=8, person=_PERSON).digest()
    return int.from_bytes(digest, "little")


def perturbation_seeds(
    root_seed: int,
    num_perturbations: int,
    *,
    round: int,
    client_id: int = NO_INDEX,
    local_step: int = NO_INDEX,
) -> tuple[int, ...]:
    """Return the seeds of one step's directions, as they cross the wire: 32 bits each.

    HO-SFL shares one set of directions among all clients of a round, so it passes no
    ``client_id``; methods with private directions do.
    """
    return tuple(
        derive_seed(
            root_seed,
            "perturbation",
            round=round,
            client_id=client_id,
            local_step=local_step,
            direction=direction,
        )
        & 0xFFFF_FFFF
        for direction in range(num_perturbations)
    )


@functools.lru_cache(maxsize=4)
def seed_pool(root_seed: int, size: int) -> tuple[int, ...]:
    """Return the seeds, 32 bits each, that all of a run's shared directions are drawn from.

    Whoever knows the root seed knows the pool, so a place in it can stand for a seed.
    """
    return tuple(
        derive_seed(root_seed, "seed-pool", direction=place) & 0xFFFF_FFFF for place in range(size)
    )


def pooled_perturbation_seeds(
    root_seed: int,
    num_perturbations: int,
    pool_size: int,
    *,
    round: int,
    local_step: int = NO_INDEX,
) -> tuple[int, ...]:
    """Return the seeds of one step's directions from a pool (FedKSeed, ICML 2024).

    All choices are equally likely; no place of the pool occurs twice in a step.
    """
    chooser = derive_seed(root_seed, "seed-pool-choice", round=round, local_step=local_step)
    places = numpy_generator(chooser).permutation(pool_size)[:num_perturbations]
    pool = seed_pool(root_seed, pool_size)
    return tuple(pool[place] for place in places.tolist())


def server_perturbation_seeds(
    root_seed: int,
    num_perturbations: int,
    *,
    round: int,
    client_id: int,
    local_step: int,
    server_step: int = 0,
) -> tuple[int, ...]:
    """Return the seeds of a zeroth-order server's directions for one client's step.

    They never cross the wire, and no client's directions share a seed with them. ``server_step``
    counts the steps that the server takes on the same smashed data (MU-SplitFed).
    """
    first = server_step * num_perturbations
    return tuple(
        derive_seed(
            root_seed,
            "server-perturbation",
            round=round,
            client_id=client_id,
            local_step=local_step,
            direction=direction,
        )
        for direction in range(first, first + num_perturbations)
    )


def local_perturbation_seeds(
    root_seed: int, num_perturbations: int, *, round: int, client_id: int, local_step: int
) -> tuple[int, ...]:
    """Return the seeds of directions that a client draws for itself (HERON-SFL, FedZO).

    Nobody else rebuilds these directions, so the seeds never cross and keep all 64 bits.
    """
    return tuple(
        derive_seed(
            root_seed,
            "local-perturbation",
            round=round,
            client_id=client_id,
            local_step=local_step,
            direction=direction,
        )
        for direction in range(num_perturbations)
    )


def numpy_generator(seed: int) -> np.random.Generator:
    """Return numpy's counter-based generator (Philox) keyed by ``seed`` alone."""
    return np.random.Generator(np.random.Philox(key=seed))


def server_dropout_seed(
    root_seed: int,
    round: int,
    client_id: int = NO_INDEX,
    local_step: int = 0,
    server_step: int = NO_INDEX,
) -> int:
    """Seed of the server model's random layers.

    No ``client_id`` = the whole cohort at once; ``server_step`` tells apart the steps that a
    server takes on the same smashed data (MU-SplitFed).
    """
    return derive_seed(
        root_seed,
        "server-dropout",
        round=round,
        client_id=client_id,
        local_step=local_step,
        direction=server_step,
    )


def client_dropout_seed(root_seed: int, round: int, client_id: int, local_step: int) -> int:
    """Seed of a client model's random layers in a first-order step."""
    return derive_seed(
        root_seed, "client-dropout", round=round, client_id=client_id, local_step=local_step
    )


def auxiliary_seed(root_seed: int) -> int:
    """Seed of the initial weights of an auxiliary head, the same for all clients."""
    return derive_seed(root_seed, "auxiliary")


def alignment_seed(root_seed: int, round: int, client_id: int, epoch: int) -> int:
    """Seed of the order of a client's buffer in one pass of FSL-SAGE's alignment."""
    return derive_seed(root_seed, "alignment", round=round, client_id=client_id, local_step=epoch)
