import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.noise import DIRECTIONS, draw_perturbation
from leansplit.parameters import ParameterSpec
from leansplit.zeroth_order import (
    SumObjective,
    ZerothOrderConfig,
    directions,
    estimate,
    probe,
    unshared_directions,
)
from leansplit.zeroth_order.directions import DirectionCache, draw_direction


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


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_estimators_never_write_to_a_shared_direction(estimator):
    """Everyone in the process would step along the wrong direction and all checksums agree."""
    spec = ParameterSpec.of({"w": torch.zeros(20)})
    config = ZerothOrderConfig(num_perturbations=3, estimator=estimator)
    seeds = (901, 902, 903)
    objective = SumObjective(lambda p: p["w"] ** 2)
    first = probe(objective, spec, torch.ones(20), seeds, config)
    gradient = estimate(spec, seeds, first, config)
    cache = directions._caches[-1]
    for seed in seeds:
        kept = cache._kept[seed, 20, "gaussian", "cpu"]
        assert torch.equal(kept, draw_perturbation(seed, 20))
    with unshared_directions():
        assert torch.equal(probe(objective, spec, torch.ones(20), seeds, config), first)
        assert torch.equal(estimate(spec, seeds, first, config), gradient)
