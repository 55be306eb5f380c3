import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.costs import peak_tensor_bytes
from leansplit.noise import DIRECTIONS, draw_perturbation
from leansplit.parameters import ParameterSpec
from leansplit.zeroth_order import (
    SumObjective,
    ZerothOrderConfig,
    directions,
    estimate,
    fresh_directions,
    probe,
    unshared_directions,
)
from leansplit.zeroth_order.directions import DirectionCache, direction_parts, draw_direction
from leansplit.zeroth_order.estimators import perturbed


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40), st.sampled_from(DIRECTIONS)), max_size=40
    )
)
def test_a_kept_direction_is_the_drawn_one_and_memory_is_bounded(draws):
    cache = DirectionCache(max_bytes=1_000)
    for seed, size, direction in draws:
        shared = cache.draw(seed, size, direction, "cpu")
        assert torch.equal(shared, draw_perturbation(seed, size, direction=direction))
        assert cache.num_bytes <= 1_000
        assert cache.num_bytes == sum(tensor.nbytes for tensor in cache._kept.values())


def test_so_many_are_kept_however_small_they_are():
    cache = DirectionCache(max_bytes=10**6, max_directions=3)
    first, *_ = (cache.draw(seed, 10, "gaussian", "cpu") for seed in range(4))
    assert len(cache) == 3 and cache.num_bytes == 3 * 40
    assert cache.draw(0, 10, "gaussian", "cpu") is not first


def test_the_most_recently_used_are_kept():
    cache = DirectionCache(max_bytes=10 * 40)
    first = cache.draw(0, 10, "gaussian", "cpu")
    for seed in range(1, 10):
        cache.draw(seed, 10, "gaussian", "cpu")
    assert cache.draw(0, 10, "gaussian", "cpu") is first  # and now it is the newest
    second = cache._kept[1, 10, "gaussian", "cpu"]
    cache.draw(99, 10, "gaussian", "cpu")
    assert cache.draw(0, 10, "gaussian", "cpu") is first
    assert cache.draw(1, 10, "gaussian", "cpu") is not second
    assert len(cache) == 10


def test_large_and_empty_directions_are_not_kept():
    cache = DirectionCache(max_bytes=800)
    cache.draw(0, 26, "gaussian", "cpu")  # 104 bytes, more than an eighth
    cache.draw(0, 0, "gaussian", "cpu")
    assert len(cache) == 0
    cache.draw(0, 25, "gaussian", "cpu")
    assert len(cache) == 1


def test_nothing_is_shared_within_the_block():
    shared = draw_direction(5, 10, "gaussian", "cpu")
    assert draw_direction(5, 10, "gaussian", "cpu") is shared
    with pytest.raises(KeyError), unshared_directions():
        drawn = draw_direction(5, 10, "gaussian", "cpu")
        assert drawn is not shared and torch.equal(drawn, shared)
        assert draw_direction(5, 10, "gaussian", "cpu") is not drawn
        raise KeyError
    assert draw_direction(5, 10, "gaussian", "cpu") is shared


def test_threads_that_take_turns_share_nothing_within_their_blocks():
    """Else the first of two programs that are compared would draw for the second."""
    drawn = {}

    def program(name):
        with fresh_directions():
            drawn[name] = draw_direction(6, 10, "gaussian", "cpu")
            assert draw_direction(6, 10, "gaussian", "cpu") is drawn[name]

    with fresh_directions():
        program("here")
        outside = draw_direction(6, 10, "gaussian", "cpu")
        other = threading.Thread(target=program, args=("there",))
        other.start()
        other.join()
        assert draw_direction(6, 10, "gaussian", "cpu") is outside
    assert len({id(tensor) for tensor in (outside, *drawn.values())}) == 3


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_estimators_never_write_to_a_shared_direction(estimator):
    """Everyone in the process would step along the wrong direction and all checksums agree."""
    spec = ParameterSpec.of({"w": torch.zeros(20)})
    config = ZerothOrderConfig(num_perturbations=3, estimator=estimator)
    seeds = (901, 902, 903)
    objective = SumObjective(lambda p: p["w"] ** 2)
    first = probe(objective, spec, torch.ones(20), seeds, config)
    gradient = estimate(spec, seeds, first, config, device="cpu")
    cache = directions._cache.get()
    for seed in seeds:
        kept = cache._kept[seed, 20, "gaussian", "cpu"]
        assert torch.equal(kept, draw_perturbation(seed, 20))
    with unshared_directions():
        assert torch.equal(probe(objective, spec, torch.ones(20), seeds, config), first)
        assert torch.equal(estimate(spec, seeds, first, config, device="cpu"), gradient)


@given(
    st.integers(0, 40),
    st.sampled_from(DIRECTIONS),
    st.integers(1, 12),
    st.booleans(),
)
def test_parts_are_the_whole_direction_in_order(size, direction, part_elements, is_kept):
    cache = DirectionCache(10_000 if is_kept else 0)
    with pytest.MonkeyPatch.context() as patch, fresh_directions():
        patch.setattr(directions, "_PART_ELEMENTS", part_elements)
        directions._cache.set(cache)
        parts = list(direction_parts(7, size, direction, "cpu"))
    assert [part.indices(size) for part, _ in parts] == [
        (start, min(start + part_elements, size), 1) for start in range(0, size, part_elements)
    ]
    whole = torch.cat([torch.empty(0), *(values for _, values in parts)])
    assert torch.equal(whole, draw_perturbation(7, size, direction=direction))
    assert bool(len(cache)) == (is_kept and size > 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_estimate_and_perturbation_hold_little_beside_what_they_return(direction):
    """What the docstrings say, in multiples of d; a part of 512 KiB is 1/8 of 4 d bytes here."""
    d = 1024 * 1024
    spec, theta = ParameterSpec.of({"w": torch.zeros(d)}), torch.zeros(d)
    config = ZerothOrderConfig(num_perturbations=3, direction=direction)
    v = torch.ones(3, dtype=torch.float64)
    part = 1 / 8
    extra = 4 if "sphere" in direction else 0
    with unshared_directions():  # as on a device that serves one client
        rebuilt = peak_tensor_bytes(lambda: estimate(spec, (1, 2, 3), v, config, device="cpu")) / (
            4 * d
        )
        moved = peak_tensor_bytes(lambda: perturbed(theta, 1e-3, 1, config)) / (4 * d)
    assert rebuilt <= 1 + 2 * part + extra
    assert moved <= 2 + 2 * part + extra


def test_parts_change_no_bit_of_an_estimate_or_a_probe():
    d, seeds = 300, (4, 5)
    spec = ParameterSpec.of({"w": torch.zeros(d)})
    theta = draw_perturbation(1, d)
    for direction in DIRECTIONS:
        config = ZerothOrderConfig(num_perturbations=2, direction=direction)
        v = torch.tensor([0.3, -1.7], dtype=torch.float64)
        found = []
        for part_elements in (7, 1000):
            with pytest.MonkeyPatch.context() as patch, unshared_directions():
                patch.setattr(directions, "_PART_ELEMENTS", part_elements)
                found.append(
                    (
                        estimate(spec, seeds, v, config, device="cpu"),
                        perturbed(theta, 1e-2, seeds[0], config),
                    )
                )
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
