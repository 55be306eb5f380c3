import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.noise import (
    client_dropout_seed,
    derive_seed,
    first_uniforms,
    local_perturbation_seeds,
    numpy_generator,
    perturbation_seeds,
    pooled_perturbation_seeds,
    seed_pool,
    server_dropout_seed,
    server_perturbation_seeds,
    torch_seeded,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
ARGUMENTS = st.fixed_dictionaries(
    {
        "root_seed": INT64,
        "purpose": st.text(max_size=20),
        "round": INT64,
        "client_id": INT64,
        "local_step": INT64,
        "direction": INT64,
    }
)


def test_golden_values():
    # int.from_bytes(blake2b(pack("<qqqqq", root, round, client, step, direction) + purpose,
    #                        digest_size=8, person=b"leansplit-seed-1"), "little"); absent = -1
    assert derive_seed(0, "cohort") == 2441062330248948370
    assert derive_seed(0, "cohort", round=1) == 15119204645244997684
    everything = {"round": 2, "client_id": 3, "local_step": 4, "direction": 5}
    assert derive_seed(-1, "batch", **everything) == 16905644164943216796
    assert perturbation_seeds(7, 3, round=1) == (3077730782, 3009940970, 3167982138)
    assert client_dropout_seed(7, 1, 2, 3) == 7427361703443026048
    assert server_dropout_seed(7, 1) == 2867164245877718806


@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**63, 2**64 - 1]))))
def test_first_uniforms_are_those_of_a_generator_each(seeds):
    assert first_uniforms(seeds) == [numpy_generator(seed).random() for seed in seeds]


def test_no_collisions_over_a_grid():
    grid = itertools.product(
        (0, 1, 17),
        ("perturbation", "batch"),
        range(1, 11),
        range(-1, 9),
        range(-1, 9),
        range(-1, 9),
    )
    seeds = {
        derive_seed(root, purpose, round=t, client_id=m, local_step=h, direction=p)
        for root, purpose, t, m, h, p in grid
    }
    assert len(seeds) == 3 * 2 * 10 * 10 * 10 * 10


@given(ARGUMENTS, st.data())
def test_every_argument_matters(arguments, data):
    name = data.draw(st.sampled_from(sorted(arguments)))
    other = data.draw(ARGUMENTS.map(lambda a: a[name]).filter(lambda v: v != arguments[name]))
    assert derive_seed(**arguments) != derive_seed(**{**arguments, name: other})
    assert 0 <= derive_seed(**arguments) < 2**64


def test_swapping_two_indices_matters():
    names = ("round", "client_id", "local_step", "direction")
    permuted = {
        derive_seed(0, "batch", **dict(zip(names, values, strict=True)))
        for values in itertools.permutations((1, 2, 3, 4))
    }
    assert len(permuted) == 24


def test_two_root_seeds_differ_everywhere():
    for draw in (
        lambda root, t: [derive_seed(root, "cohort", round=t)],
        lambda root, t: perturbation_seeds(root, 4, round=t),
        lambda root, t: [client_dropout_seed(root, t, 1, 0)],
        lambda root, t: [server_dropout_seed(root, t)],
    ):
        first = {seed for t in range(1, 200) for seed in draw(1, t)}
        second = {seed for t in range(1, 200) for seed in draw(2, t)}
        assert len(first) == len(second) >= 199
        assert not first & second


def test_purposes_do_not_share_seeds():
    assert client_dropout_seed(0, 1, 2, 0) != server_dropout_seed(0, 1, 2, 0)
    indices = {"round": 1, "client_id": 2, "local_step": 0}
    clients = perturbation_seeds(0, 9, **indices)
    servers = server_perturbation_seeds(0, 9, **indices)
    assert not set(clients) & {seed & 0xFFFF_FFFF for seed in servers}


def test_server_steps_on_the_same_smashed_data_share_no_seed():
    drawn = [
        seed
        for m in range(5)
        for h in range(3)
        for s in range(4)
        for seed in (
            *server_perturbation_seeds(0, 3, round=1, client_id=m, local_step=h, server_step=s),
            server_dropout_seed(0, 1, m, h, s),
        )
    ]
    assert len(set(drawn)) == len(drawn) == 5 * 3 * 4 * 4


def test_perturbation_seeds_are_32_bit_and_the_low_half_of_the_hash():
    seeds = perturbation_seeds(5, 500, round=3, client_id=2, local_step=1)
    assert len(set(seeds)) == 500
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert max(seeds).bit_length() == 32
    hashed = [
        derive_seed(5, "perturbation", round=3, client_id=2, local_step=1, direction=p)
        for p in range(500)
    ]
    assert list(seeds) == [seed % 2**32 for seed in hashed]
    assert perturbation_seeds(5, 0, round=3) == ()


def test_more_perturbations_keep_the_first_ones():
    assert perturbation_seeds(1, 9, round=1)[:4] == perturbation_seeds(1, 4, round=1)


def test_pooled_seeds_are_the_pools_and_no_two_of_a_step_are_one():
    pool = seed_pool(5, 20)
    assert pool == seed_pool(5, 30)[:20] and len(set(pool)) == 20 and max(pool) < 2**32
    assert not set(pool) & set(seed_pool(6, 20))
    steps = [
        pooled_perturbation_seeds(5, 4, 20, round=t, local_step=h)
        for t in range(1, 101)
        for h in (0, 1)
    ]
    assert all(len(set(step)) == 4 for step in steps) and len(set(steps)) > 190
    times = [sum(step.count(seed) for step in steps) for seed in pool]
    assert sum(times) == 800 and min(times) > 20 and max(times) < 60  # 40 each are expected
    assert set(pooled_perturbation_seeds(5, 20, 20, round=1)) == set(pool)


def test_local_perturbation_seeds_are_private_to_client_and_step():
    """64 bits, since they never cross, and apart from the seeds that do."""
    drawn = {
        seed
        for m, h in itertools.product(range(20), range(5))
        for seed in local_perturbation_seeds(5, 4, round=3, client_id=m, local_step=h)
    }
    assert len(drawn) == 20 * 5 * 4 and max(drawn) >= 2**63
    shared = perturbation_seeds(5, 4, round=3, client_id=2, local_step=1)
    private = local_perturbation_seeds(5, 4, round=3, client_id=2, local_step=1)
    assert set(shared).isdisjoint(seed % 2**32 for seed in private)
    assert private[0] == derive_seed(
        5, "local-perturbation", round=3, client_id=2, local_step=1, direction=0
    )


def test_numpy_generator_depends_on_its_seed_alone():
    first = numpy_generator(3).integers(0, 2**62, 8)
    numpy_generator(4).random(100)
    assert first.tolist() == numpy_generator(3).integers(0, 2**62, 8).tolist()
    assert first.tolist() != numpy_generator(4).integers(0, 2**62, 8).tolist()


def test_torch_seeded_draws_by_its_seed_and_restores_the_global_generator():
    before = torch.get_rng_state()
    with torch_seeded(2**64 - 1):
        first = torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)
    with torch_seeded(2**64 - 1):
        assert torch.equal(torch.rand(5), first)
        with torch_seeded(3):
            inner = torch.rand(5)
        after_inner = torch.rand(5)
    assert not torch.equal(inner, first)
    with torch_seeded(2**64 - 1):
        torch.rand(5)
        assert torch.equal(torch.rand(5), after_inner)  # the inner block left no trace


def test_torch_seeded_restores_after_an_exception():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), torch_seeded(1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_derivation_ignores_global_generators():
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002
    seeds = perturbation_seeds(0, 5, round=1)
    assert seeds == perturbation_seeds(0, 5, round=1)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())
