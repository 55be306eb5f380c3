"""Partitions kept on disk, so that worker processes need not import the library that draws them.

flwr-datasets takes seconds to import and every worker of a simulation needs the same partition.
The process that starts a run draws it once; the workers read it. Where the cache folder is not
shared, workers draw it themselves: the same seed gives the same partition.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from torch import Tensor

from leansplit.clients.partition import Partition, PartitionConfig, partition_labels
from leansplit.tasks.image_cache import cache_folder, cache_key

_FORMAT = 1
_log = logging.getLogger("leansplit")


def cached_partition(
    labels: Tensor, *, num_clients: int, config: PartitionConfig, seed: int
) -> Partition:
    """Return what :func:`partition_labels` returns, from the cache folder if it is there."""
    key = cache_key(
        {
            "format": _FORMAT,
            "labels": hashlib.blake2b(labels.numpy().tobytes(), digest_size=16).hexdigest(),
            "num_clients": num_clients,
            "seed": seed,
            "flwr-datasets": version("flwr-datasets"),
            **asdict(config),
        }
    )
    path = cache_folder() / "partitions" / f"{key}.safetensors"
    known = _read(path)
    if known is not None:
        return known
    partition = partition_labels(labels, num_clients=num_clients, config=config, seed=seed)
    _write(path, partition)
    return partition


def _read(path: Path) -> Partition | None:
    try:
        stored = safetensors.numpy.load(path.read_bytes())
        ends = np.cumsum(stored["sizes"])[:-1]
        return [share.copy() for share in np.split(stored["indices"], ends)]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _log.warning("cached partition %s is unreadable and drawn again: %s", path.name, error)
        return None


def _write(path: Path, partition: Partition) -> None:
    stored = {
        "indices": np.concatenate(partition).astype(np.int64),
        "sizes": np.array([len(share) for share in partition], dtype=np.int64),
    }
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(safetensors.numpy.save(stored))
        os.replace(temporary, path)  # noqa: PTH105  (the atomic call, by its name)
    except OSError as error:  # a cache that cannot be written only costs time
        _log.warning("the partition could not be cached: %s", error)
