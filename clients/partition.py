"""Which training samples each client holds: flwr-datasets draws, this module guards the result.

The library's partitioners are used as they are, with three rules around them:

* Rows are shuffled by the seed first. ``IidPartitioner`` cuts the rows into consecutive pieces
  and the others cut each class so; on a file sorted by class that would not be IID at all.
* ``DirichletPartitioner`` is asked for one draw without a minimum size. With its own minimum it
  redraws all clients up to ten times and then gives up, which under strong skew it always does
  (1,437 samples over 500 clients with alpha 0.5 leave about 30 of them empty in every draw).
  Instead, each client below the minimum, in order of client id, takes single samples from the
  client that is largest at that moment (the lowest id among equals), always the last of that
  client's shuffled samples. A draw that already meets the minimum stays as the library made it.
* ``PathologicalPartitioner`` assigns classes as in its paper ("first-deterministic"): client i
  holds class i modulo C and others at random, so no class is lost unless clients are fewer than
  classes. Samples of classes that no client holds stay unused and are counted in the report.
"""

from __future__ import annotations

import heapq
import logging
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leansplit.errors import RunFailedError, UserError, require_choice, require_positive

PartitionKind = Literal["iid", "dirichlet", "pathological"]

Partition = list[NDArray[np.int64]]
"""Training indices of every client, ascending; position = client id."""

_MAX_ALPHA = 1e6  # equal shares by then; NumPy's draw overflows to zeros near 1e307
_SHUFFLE_PURPOSE = 1  # keeps the shuffle's stream apart from the partitioner's own

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartitionConfig:
    """How training samples are spread over clients.

    Raises:
        UserError: if a value is out of range.
    """

    kind: PartitionKind = "iid"
    """iid: equal random shares. dirichlet: each class is shared out by Dirichlet(alpha) proportions
    over the clients. pathological: each client holds a few classes only."""

    alpha: float = 0.5
    """Concentration of the Dirichlet distribution, above 0, at most 1e6; smaller = more skew."""

    classes_per_client: int = 2
    """Number of classes each client holds, if pathological."""

    min_samples: int = 1
    """Every client holds at least this many samples."""

    def __post_init__(self) -> None:
        require_choice("partition kind", self.kind, get_args(PartitionKind))
        if require_positive("alpha", self.alpha) > _MAX_ALPHA:
            raise UserError(
                f"alpha must be at most {_MAX_ALPHA:g}, got {self.alpha!r}; use kind 'iid' for no "
                "skew at all"
            )
        for name in ("classes_per_client", "min_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


def partition_labels(
    labels: ArrayLike, *, num_clients: int, config: PartitionConfig, seed: int
) -> Partition:
    """Spread training samples over clients; the same arguments give the same partition.

    Args:
        labels: [n] class index of every training sample (array, tensor or list).
        num_clients: size of the population, from 1 to n.
        config: kind and strength of the skew.
        seed: root of both the shuffle and the library's draws, at least 0.

    Returns:
        One ascending array of indices into ``labels`` per client: disjoint, each of at least
        ``config.min_samples``, and together all samples (pathological: all of the classes held).

    Raises:
        UserError: if no such partition exists or the library cannot draw it; says what to change.
    """
    values = _checked_labels(labels)
    if seed < 0:
        raise UserError(f"the partition's seed must be at least 0, got {seed}")
    if num_clients < 1:
        raise UserError(f"num_clients must be at least 1, got {num_clients}")
    if num_clients * config.min_samples > len(values):
        raise UserError(
            f"{num_clients} clients with at least {config.min_samples} samples each need "
            f"{num_clients * config.min_samples} samples, but there are {len(values)}; use at most "
            f"{len(values) // config.min_samples} clients, a smaller min_samples or more data"
        )
    shuffled = np.random.default_rng((_SHUFFLE_PURPOSE, seed)).permutation(len(values))
    shares = _draw(values, shuffled, num_clients, config, seed)
    _check_disjoint(shares)
    if config.kind == "dirichlet":
        num_moved = _top_up(shares, config.min_samples)
        if num_moved:
            _logger.info(
                "moved %d of %d samples so that each of %d clients has at least %d",
                num_moved,
                len(values),
                num_clients,
                config.min_samples,
            )
    smallest = min(len(share) for share in shares)
    if smallest < config.min_samples:
        raise UserError(
            f"the {config.kind} partition leaves a client with {smallest} samples, below "
            f"min_samples={config.min_samples}; use fewer clients, a smaller min_samples or, if "
            "pathological, another classes_per_client"
        )
    return [np.sort(np.asarray(share, dtype=np.int64)) for share in shares]


def _checked_labels(labels: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(labels)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise UserError(
            f"labels must be one row of whole numbers, got {values.dtype} of shape {values.shape}"
        )
    if values.size and values.min() < 0:
        raise UserError(f"labels must be class indices from 0, got {values.min()}")
    return values.astype(np.int64)


def _draw(
    labels: NDArray[np.int64],
    shuffled: NDArray[np.int64],
    num_clients: int,
    config: PartitionConfig,
    seed: int,
) -> list[list[int]]:
    """Return the sample indices of every client, as the library draws them.

    Raises:
        UserError: with the library's own words, if it refuses.
    """
    import datasets  # both imports take seconds

    partitioner = _partitioner(num_clients, config, seed)
    partitioner.dataset = datasets.Dataset.from_dict({"index": shuffled, "label": labels[shuffled]})
    try:
        with warnings.catch_warnings():
            # Classes that no client holds: counted by PartitionReport.num_unused instead.
            warnings.simplefilter("ignore")
            return [
                partitioner.load_partition(client_id)["index"][:]
                for client_id in range(num_clients)
            ]
    except ValueError as error:
        remedy = {
            "iid": "use fewer clients",
            "dirichlet": "raise alpha or use fewer clients",
            "pathological": "use fewer clients or a smaller classes_per_client",
        }[config.kind]
        setting = {
            "iid": "",
            "dirichlet": f" with alpha = {config.alpha:g}",
            "pathological": f" with classes_per_client = {config.classes_per_client}",
        }[config.kind]
        raise UserError(
            f"cannot spread {len(labels)} samples over {num_clients} clients by partition = "
            f"{config.kind}{setting} (min_samples = {config.min_samples}); "
            f"{remedy} (flwr-datasets says: {error})"
        ) from error


def _partitioner(num_clients: int, config: PartitionConfig, seed: int) -> Any:
    from flwr_datasets.partitioner import (
        DirichletPartitioner,
        IidPartitioner,
        PathologicalPartitioner,
    )

    if config.kind == "iid":
        return IidPartitioner(num_partitions=num_clients)
    if config.kind == "dirichlet":
        return DirichletPartitioner(
            num_partitions=num_clients,
            partition_by="label",
            alpha=float(config.alpha),
            min_partition_size=0,
            self_balancing=False,
            seed=seed,
        )
    return PathologicalPartitioner(
        num_partitions=num_clients,
        partition_by="label",
        num_classes_per_partition=config.classes_per_client,
        class_assignment_mode="first-deterministic",
        seed=seed,
    )


def _check_disjoint(shares: Sequence[Sequence[int]]) -> None:
    """Raise RunFailedError if two clients hold one sample: a promise the library keeps today."""
    drawn = np.concatenate([np.asarray(share, dtype=np.int64) for share in shares])
    if len(np.unique(drawn)) != len(drawn):
        raise RunFailedError(
            "flwr-datasets gave one sample to two clients; report it with the version of "
            "flwr-datasets, and use another partition kind"
        )


def _top_up(shares: list[list[int]], min_samples: int) -> int:
    """Move single samples from the largest clients until none is below the minimum (in place).

    Returns:
        Number of samples moved. Ends because the minimum is at most the mean size: while a client
        is below it, the largest client is above it.
    """
    largest_first = [(-len(share), client_id) for client_id, share in enumerate(shares)]
    heapq.heapify(largest_first)
    num_moved = 0
    for share in shares:
        while len(share) < min_samples:
            _, donor = heapq.heappop(largest_first)
            share.append(shares[donor].pop())
            heapq.heappush(largest_first, (-len(shares[donor]), donor))
            num_moved += 1
    return num_moved


@dataclass(frozen=True, eq=False)
class PartitionReport:
    """How unevenly a partition spreads samples and classes."""

    label_counts: NDArray[np.int64]
    """[num_clients, num_classes]: samples of each class at each client."""

    num_unused: int
    """Samples that no client holds."""

    @classmethod
    def of(
        cls, partition: Sequence[NDArray[np.int64]], labels: ArrayLike, *, num_classes: int
    ) -> PartitionReport:
        """Count the labels of every client's samples.

        Raises:
            UserError: if a label is outside ``[0, num_classes)``.
        """
        values = _checked_labels(labels)
        if values.size and values.max() >= num_classes:
            raise UserError(f"label {values.max()} is out of range for {num_classes} classes")
        counts = np.stack(
            [np.bincount(values[indices], minlength=num_classes) for indices in partition]
        ).astype(np.int64)
        return cls(label_counts=counts, num_unused=len(values) - int(counts.sum()))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[num_clients] samples per client."""
        sizes: NDArray[np.int64] = self.label_counts.sum(axis=1)
        return sizes

    @property
    def mean_label_entropy_bits(self) -> float:
        """Mean over clients of the entropy of their labels.

        0 where each client has one class, log2(num_classes) where each has all classes equally.
        """
        shares = self.label_counts / np.maximum(self.sizes, 1)[:, np.newaxis]
        logarithms = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
        return float(-(shares * logarithms).sum(axis=1).mean() + 0.0)

    @property
    def mean_classes_per_client(self) -> float:
        """Mean number of classes of which a client holds a sample."""
        return float((self.label_counts > 0).sum(axis=1).mean())

    def describe(self) -> str:
        """Return one line of text."""
        num_clients, num_classes = self.label_counts.shape
        unused = f", {self.num_unused} samples unused" if self.num_unused else ""
        return (
            f"{num_clients} clients with {self.sizes.min()} to {self.sizes.max()} samples "
            f"(median {statistics.median(self.sizes.tolist()):g}), "
            f"{self.mean_classes_per_client:.1f} of {num_classes} classes and "
            f"{self.mean_label_entropy_bits:.2f} of {np.log2(num_classes):.2f} bits of label "
            f"entropy per client{unused}"
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values for result files."""
        return {
            "num_clients": len(self.label_counts),
            "min_samples": int(self.sizes.min()),
            "median_samples": float(statistics.median(self.sizes.tolist())),
            "max_samples": int(self.sizes.max()),
            "num_unused_samples": self.num_unused,
            "mean_classes_per_client": self.mean_classes_per_client,
            "mean_label_entropy_bits": self.mean_label_entropy_bits,
            "label_counts": self.label_counts.tolist(),
        }
