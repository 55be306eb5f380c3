"""Partitions: disjoint, covering, repeatable, as skewed as asked, and clear when impossible."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leansplit.clients import partition as partition_module
from leansplit.clients.partition import (
    Partition,
    PartitionConfig,
    PartitionKind,
    PartitionReport,
    partition_labels,
)
from leansplit.errors import RunFailedError, UserError
from leansplit.tasks import build_digits_task

NUM_CLASSES = 10
KINDS: tuple[PartitionKind, ...] = ("iid", "dirichlet", "pathological")
# Each example draws from a real datasets.Dataset, so few examples say most.
few_examples = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def digit_labels() -> NDArray[np.int64]:
    return build_digits_task().train.labels.numpy()


def sorted_labels(num_samples: int) -> NDArray[np.int64]:
    """Labels in class order, as many files on disk are."""
    return np.sort(np.arange(num_samples) % NUM_CLASSES)


def draw(labels: NDArray[np.int64], num_clients: int, seed: int = 3, **config: object) -> Partition:
    return partition_labels(
        labels,
        num_clients=num_clients,
        config=PartitionConfig(**config),  # type: ignore[arg-type]
        seed=seed,
    )


def report(partition: Partition, labels: NDArray[np.int64]) -> PartitionReport:
    return PartitionReport.of(partition, labels, num_classes=NUM_CLASSES)


def same(left: Partition, right: Partition) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@few_examples
@given(
    kind=st.sampled_from(["iid", "dirichlet"]),
    num_clients=st.integers(1, 40),
    min_samples=st.integers(1, 5),
    alpha=st.floats(0.01, 100.0),
    seed=st.integers(0, 2**63 - 1),
)
def test_partitions_cover_all_samples_once(
    kind: PartitionKind, num_clients: int, min_samples: int, alpha: float, seed: int
) -> None:
    labels = sorted_labels(203)
    partition = draw(labels, num_clients, seed, kind=kind, alpha=alpha, min_samples=min_samples)
    assert len(partition) == num_clients
    assert np.array_equal(np.sort(np.concatenate(partition)), np.arange(203))
    for indices in partition:
        assert indices.dtype == np.int64
        assert len(indices) >= min_samples
        assert np.array_equal(indices, np.sort(indices))


@few_examples
@given(
    num_clients=st.integers(1, 20),
    classes_per_client=st.integers(1, NUM_CLASSES),
    seed=st.integers(0, 2**32),
)
def test_pathological_clients_hold_exactly_the_classes_asked_for(
    num_clients: int, classes_per_client: int, seed: int
) -> None:
    labels = sorted_labels(300)
    partition = draw(
        labels, num_clients, seed, kind="pathological", classes_per_client=classes_per_client
    )
    held = np.concatenate(partition)
    assert len(np.unique(held)) == len(held)
    for indices in partition:
        assert len(np.unique(labels[indices])) == classes_per_client
    if num_clients >= NUM_CLASSES:
        assert len(held) == len(labels)
    # Every sample of a class that somebody holds is used.
    assert len(held) == 30 * len(np.unique(labels[held]))


@few_examples
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**40))
def test_a_seed_determines_the_partition(kind: PartitionKind, seed: int) -> None:
    labels = sorted_labels(150)
    first, again, other = (draw(labels, 12, s, kind=kind) for s in (seed, seed, seed + 1))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_printed_and_global_generators_are_left_alone(
    kind: PartitionKind, capfd: pytest.CaptureFixture[str]
) -> None:
    draw(sorted_labels(100), 4, kind=kind)  # the imports may print what they like, once
    capfd.readouterr()
    expected = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    torch_state = torch.random.get_rng_state()
    draw(sorted_labels(100), 4, kind=kind)
    assert np.array_equal(np.random.get_state()[1], expected)  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert capfd.readouterr() == ("", "")


def test_iid_is_not_fooled_by_a_file_sorted_by_class() -> None:
    labels = sorted_labels(1000)
    counts = report(draw(labels, 10, kind="iid"), labels).label_counts
    assert bool((counts > 0).all())  # consecutive pieces would hold one class each
    assert counts.sum(axis=1).tolist() == [100] * 10


def test_skew_grows_as_alpha_falls(digit_labels: NDArray[np.int64]) -> None:
    entropies = [
        report(
            draw(digit_labels, 20, kind="dirichlet", alpha=alpha), digit_labels
        ).mean_label_entropy_bits
        for alpha in (0.05, 0.5, 5.0, 500.0)
    ]
    assert entropies == sorted(entropies)
    assert entropies[0] < 1.5
    assert entropies[-1] > 3.2  # of log2(10) = 3.32


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_a_hundred_clients_on_digits(digit_labels: NDArray[np.int64], alpha: float) -> None:
    partition = draw(digit_labels, 100, kind="dirichlet", alpha=alpha)
    assert min(map(len, partition)) >= 1
    assert sum(map(len, partition)) == len(digit_labels)


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_five_hundred_clients_on_digits(
    digit_labels: NDArray[np.int64], kind: PartitionKind
) -> None:
    partition = draw(digit_labels, 500, kind=kind, alpha=0.5)
    assert min(map(len, partition)) >= 1
    assert sum(map(len, partition)) == len(digit_labels)


def test_a_draw_that_meets_the_minimum_is_the_librarys_own() -> None:
    import datasets
    from flwr_datasets.partitioner import DirichletPartitioner

    labels, seed = sorted_labels(400), 11
    order = np.random.default_rng((1, seed)).permutation(400)
    theirs = DirichletPartitioner(
        num_partitions=5, partition_by="label", alpha=5.0, min_partition_size=10, seed=seed
    )
    theirs.dataset = datasets.Dataset.from_dict({"index": order, "label": labels[order]})
    expected = [np.sort(theirs.load_partition(i)["index"][:]) for i in range(5)]
    assert same(draw(labels, 5, seed, kind="dirichlet", alpha=5.0, min_samples=10), expected)


def test_top_up_takes_from_the_largest_client() -> None:
    """By hand: 0 needs two. Client 2 (size 4) gives 23, then 1 and 2 tie at 3 and 1 gives 12."""
    shares = [[], [10, 11, 12], [20, 21, 22, 23]]
    assert partition_module._top_up(shares, min_samples=2) == 2
    assert shares == [[23, 12], [10, 11], [20, 21, 22]]


def test_moved_samples_are_logged(
    digit_labels: NDArray[np.int64], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="leansplit.clients.partition"):
        draw(digit_labels, 100, kind="dirichlet", alpha=0.01)
    assert "of 1437 samples so that each of 100 clients has at least 1" in caplog.text


def test_labels_may_be_a_tensor_or_a_list() -> None:
    labels = sorted_labels(40)
    expected = draw(labels, 4)
    for form in (torch.from_numpy(labels), labels.tolist()):
        assert same(draw(form, 4), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "diriclet"}, "did you mean 'dirichlet'"),
        ({"kind": "dirichlet", "alpha": 0.0}, "alpha must be a finite number above 0"),
        ({"kind": "dirichlet", "alpha": -1.0}, "alpha must be a finite number above 0"),
        ({"kind": "dirichlet", "alpha": float("nan")}, "alpha must be a finite number above 0"),
        ({"kind": "dirichlet", "alpha": 1e307}, "use kind 'iid'"),
        ({"classes_per_client": 0}, "classes_per_client must be at least 1"),
        ({"min_samples": 0}, "min_samples must be at least 1"),
    ],
)
def test_bad_settings(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PartitionConfig(**config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_clients", "config", "message"),
    [
        (0, {}, "num_clients must be at least 1"),
        (101, {}, "use at most 100 clients"),
        (30, {"kind": "dirichlet", "min_samples": 4}, "use at most 25 clients"),
        (100, {"kind": "pathological"}, "fewer clients or a smaller classes_per_client"),
        (5, {"kind": "pathological", "classes_per_client": 11}, "smaller classes_per_client"),
        (10, {"kind": "pathological", "min_samples": 10}, "fewer clients, a smaller min_samples"),
    ],
)
def test_impossible_partitions(num_clients: int, config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(sorted_labels(100), num_clients, seed=2, **config)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(5), "whole numbers"),
        (np.zeros((5, 2), dtype=np.int64), "one row"),
        (np.array([0, -1, 2]), "class indices from 0"),
    ],
)
def test_bad_labels(labels: NDArray[np.int64], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(labels, 2)


def test_bad_seed() -> None:
    with pytest.raises(UserError, match="seed must be at least 0"):
        draw(sorted_labels(20), 2, seed=-1)


def test_a_sample_at_two_clients_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_module, "_draw", lambda *_: [[0, 1], [1, 2]])
    with pytest.raises(RunFailedError, match="two clients"):
        draw(sorted_labels(20), 2)


def test_report_by_hand() -> None:
    """Client 0: labels 0 0 1 1 (1 bit). Client 1: label 2 (0 bits). One sample is left over."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    partition = [np.array([0, 1, 2, 3]), np.array([4])]
    result = PartitionReport.of(partition, labels, num_classes=4)
    assert result.label_counts.tolist() == [[2, 2, 0, 0], [0, 0, 1, 0]]
    assert result.sizes.tolist() == [4, 1]
    assert result.num_unused == 1
    assert result.mean_label_entropy_bits == pytest.approx(0.5)
    assert result.mean_classes_per_client == pytest.approx(1.5)
    assert result.describe() == (
        "2 clients with 1 to 4 samples (median 2.5), 1.5 of 4 classes and 0.50 of 2.00 bits of "
        "label entropy per client, 1 samples unused"
    )
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["min_samples"] == 1
    assert plain["median_samples"] == 2.5
    assert plain["max_samples"] == 4
    assert plain["label_counts"] == [[2, 2, 0, 0], [0, 0, 1, 0]]


def test_report_rejects_labels_beyond_the_classes() -> None:
    with pytest.raises(UserError, match="label 2 is out of range for 2 classes"):
        PartitionReport.of([np.array([0])], np.array([2]), num_classes=2)
