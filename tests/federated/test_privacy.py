"""The mechanism: bounded rows, Gaussian noise, and nothing where nothing is asked for."""

from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.costs.privacy import epsilon_spent
from leansplit.federated import (
    DeComFLConfig,
    FrozenConfig,
    HOSFLConfig,
    HOSLConfig,
    MUSplitFedConfig,
    PrivacyConfig,
    ZOSFLConfig,
    clipped,
    clipped_smashed_data,
    take_batch,
)
from leansplit.noise import secret_gaussian
from leansplit.server_app.privacy_spent import most_uploads, privacy_spent
from leansplit.tasks import Examples
from leansplit.zeroth_order import ZerothOrderConfig


def rows(seed, scale=1.0):
    return scale * torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_no_row_is_longer_than_the_clip_and_short_ones_stay(seed, scale, clip):
    given_rows = rows(seed, scale)
    norms = given_rows.flatten(1).double().norm(dim=1)
    found = clipped(given_rows, clip)
    assert (found.flatten(1).double().norm(dim=1) <= clip * (1 + 1e-6)).all()
    for row, before, norm in zip(found, given_rows, norms, strict=True):
        assert torch.equal(row, before) == bool(norm <= clip)


@given(
    st.lists(
        st.lists(st.floats(width=32), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.floats(1e-3, 1e3),
)
def test_no_row_whatever_is_in_it_leaves_the_ball(values, dtype, clip):
    given_rows = torch.tensor(values).to(dtype)
    found = clipped(given_rows, clip)
    rounding = 1 + 2 * torch.finfo(dtype).eps if dtype != torch.float64 else 1 + 1e-12
    assert found.dtype == dtype and found.isfinite().all()
    assert (found.double().norm(dim=1) <= clip * rounding).all()
    noisy = clipped(given_rows, clip, 0.5, 3)
    assert (noisy.double() - found.double()).abs().max() < 10 * clip


def test_what_is_not_finite_counts_as_zero_or_as_the_largest_number():
    inf, nan = torch.inf, torch.nan
    found = clipped(torch.tensor([[inf, 1.0], [-inf, inf], [nan, 0.5], [nan, nan]]), 1.0)
    half = 0.5**0.5
    expected = torch.tensor([[1.0, 0.0], [-half, half], [0.0, 0.5], [0.0, 0.0]])
    assert torch.allclose(found, expected)
    assert clipped(torch.tensor([[1e300, 1e-300]], dtype=torch.float64), 1.0)[0, 0] == 1.0
    rows = torch.tensor([[inf, 1.0], [3.0, 4.0]], requires_grad=True)
    clipped(rows, 1.0)[1].sum().backward()
    assert rows.grad.isfinite().all() and rows.grad[1].any()


def test_a_row_of_zeros_has_a_gradient():
    rows = torch.tensor([[0.0, 0.0], [0.3, 0.4], [3.0, 4.0]], requires_grad=True)
    clipped(rows, 1.0).sum().backward()
    inside, outside = torch.ones(2, 2), torch.tensor([[4.0 * (4 - 3), 3.0 * (3 - 4)]]) / 125
    torch.testing.assert_close(rows.grad, torch.cat([inside, outside]))


def test_noise_has_the_deviation_it_says_and_a_mask_stays():
    z = torch.zeros(50, 40, 21)
    z[..., -1] = 1
    for seed in (None, 3):
        found = clipped_smashed_data(z, 2.0, 0.5, seed, has_mask=True)
        assert torch.equal(found[..., -1], z[..., -1])
        assert float(found[..., :-1].std()) == pytest.approx(1.0, rel=0.02)
    assert torch.equal(clipped(rows(0), 1e9, 0.0), rows(0))
    assert torch.equal(clipped(rows(0), 0.0, 5.0), rows(0))


def test_padding_takes_no_share_of_the_norm():
    """What a model makes of padding depends on how long a row's neighbours are."""
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    z[..., -1] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]])
    other = torch.where(z[..., -1:] > 0, z, torch.tensor([torch.inf, torch.nan, 7.0, 0.0]))
    found, again = (clipped_smashed_data(each, 0.5, 0.0, 1, has_mask=True) for each in (z, other))
    assert torch.equal(found, again)
    shorter = clipped_smashed_data(z[1:2, :2], 0.5, 0.0, 1, has_mask=True)
    assert torch.allclose(found[1:2, :2], shorter, rtol=1e-6)
    norms = found[..., :-1].flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.full((3,), 0.5))


def test_secret_noise_is_gaussian_and_never_the_same():
    drawn = secret_gaussian(200_001)
    assert len(drawn) == 200_001 and not torch.equal(drawn, secret_gaussian(200_001))
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert float(drawn.pow(power).mean()) == pytest.approx(moment, abs=0.1)


def test_epsilon_is_the_librarys_own():
    # One release, replacement moves a row by 2 C under noise of sigma C.
    by_library = dp_accounting.get_epsilon_gaussian(5.0 / 2, 1e-5)
    assert epsilon_spent([(5.0, 1)], 1e-5) == pytest.approx(by_library, rel=1e-9)
    # Two kinds of releases, composed by another accountant of the library.
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(20.0 / 2), 30)
    accountant.compose(dp_accounting.GaussianDpEvent(8.0 / 2), 2)
    found = epsilon_spent([(20.0, 30), (8.0, 2)], 1e-5)
    assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-4)
    assert epsilon_spent([(0.0, 1)], 1e-5) == epsilon_spent([(1e-300, 1)], 1e-5) == np.inf
    assert epsilon_spent([(5.0, 0)], 1e-5) == 0.0


def test_uploads_are_counted_over_the_schedule():
    config = HOSFLConfig(
        cohort_size=2,
        batch_size=3,
        root_seed=5,
        privacy=PrivacyConfig(clip=1.0, noise=30.0, scalar_clip=1.0),
    )
    sizes = {0: 7, 1: 4, 2: 2}
    marked = {
        m: Examples(torch.eye(n), torch.zeros(n, dtype=torch.int64)) for m, n in sizes.items()
    }
    seen = {m: torch.zeros(n) for m, n in sizes.items()}
    rounds = dict.fromkeys(sizes, 0)
    for t in range(1, 21):
        for m in config.sample_cohort(t, sizes):
            seen[m] += take_batch(marked[m], 5, t, m, batch_size=3)[0].sum(0)
            rounds[m] += 1
    most = max(int(counts.max()) for counts in seen.values())
    assert most_uploads(config, sizes, 20) == (most, max(rounds.values()))
    spent = privacy_spent(config, sizes, 20, averages_weights=False)
    assert spent["smashed_data"] == {
        "uploads": most,
        "epsilon": epsilon_spent([(30.0, most)], 1e-5),
    }
    assert spent["unprotected"] == ["labels", "scalars"]
    assert spent["scalars"]["epsilon"] == np.inf


def test_every_view_of_a_sample_is_a_release():
    privacy = PrivacyConfig(clip=1.0, noise=40.0)
    probes = ZerothOrderConfig(num_perturbations=3)
    sizes = {0: 4, 1: 4}
    common = {"cohort_size": 2, "batch_size": 2, "privacy": privacy}
    configs = [  # (config, releases of a sample in one upload)
        (HOSLConfig(zeroth_order=probes, **common), 1 + 3),
        (HOSLConfig(zeroth_order=replace(probes, estimator="central"), **common), 1 + 6),
        (ZOSFLConfig(zeroth_order=replace(probes, estimator="central"), **common), 6),
        (MUSplitFedConfig(zeroth_order=replace(probes, estimator="central"), **common), 1 + 6),
        (FrozenConfig(**common), 1),
    ]
    schedules = {most_uploads(config, sizes, 10)[0] / views for config, views in configs}
    assert len(schedules) == 1 and schedules.pop() >= 5  # each sample is in half of the batches
    uploads = most_uploads(configs[2][0], sizes, 10)[0]
    spent = privacy_spent(configs[2][0], sizes, 10, averages_weights=True)
    assert spent["smashed_data"]["epsilon"] == epsilon_spent([(40.0, uploads)], 1e-5)
    assert spent["unprotected"] == ["labels"]  # the weights follow from what the server knows


def test_whoever_is_asked_again_is_counted_again():
    config = FrozenConfig(
        cohort_size=2, batch_size=2, features_once=True, privacy=PrivacyConfig(clip=1.0, noise=4.0)
    )
    mended = {"resyncs": 5, "checksum_mismatches": 1}  # how often, but not who
    cases = (
        ({}, {}, 1),
        ({}, {"dropped_clients": 2}, 3),
        ({"smashed_data": {0: 3, 1: 2}, "labels": {0: 9}}, mended, 1 + 3),
        ({"smashed_data": {1: 1}}, {"dropped_clients": 2, **mended}, 1 + 1 + 2),
    )
    for repeated, events, uploads in cases:
        spent = privacy_spent(
            config, {0: 4, 1: 9}, 10, averages_weights=False, repeated=repeated, events=events
        )
        epsilon = epsilon_spent([(4.0, uploads)], 1e-5)
        assert spent["smashed_data"] == {"uploads": uploads, "epsilon": epsilon}


def test_where_scalars_alone_cross_their_noise_covers_everything():
    sizes = {0: 2, 1: 64}
    privacy = PrivacyConfig(scalar_clip=1.0, scalar_noise=4.0)
    config = DeComFLConfig(cohort_size=2, batch_size=2, local_steps=3, privacy=privacy)
    spent = privacy_spent(config, sizes, 6, averages_weights=False)
    assert spent == {
        "delta": 1e-5,
        "is_secret": True,
        "unprotected": [],
        "scalars": {"uploads": 6, "epsilon": epsilon_spent([(4.0, 6)], 1e-5)},
    }
    clipped_only = replace(config, privacy=PrivacyConfig(scalar_clip=1.0))
    found = privacy_spent(clipped_only, sizes, 6, averages_weights=False)
    assert found["unprotected"] == ["scalars"] and found["scalars"]["epsilon"] == np.inf
    # All local steps' scalars are one row: together they stay in the ball.
    sent = clipped_only.released_scalars(torch.full((3, 5), 2.0), 1, 0)
    assert sent.shape == (3, 5) and sent.norm() == pytest.approx(1.0)


def test_the_client_with_most_uploads_decides_and_scalars_are_counted_apart():
    privacy = PrivacyConfig(clip=1.0, noise=4.0, scalar_clip=1.0, scalar_noise=4.0)
    config = HOSFLConfig(cohort_size=2, batch_size=2, privacy=privacy)
    sizes = {0: 2, 1: 64}  # client 0 uploads both of its samples in every round
    assert most_uploads(config, sizes, 6) == (6, 6)
    again = {"smashed_data": {0: 2}}
    assert most_uploads(config, sizes, 6, again) == (8, 6)
    assert most_uploads(config, sizes, 6, {"smashed_data": {1: 2}}) == (6, 6)
    assert most_uploads(config, sizes, 6, {"scalars": {1: 2}}) == (6, 8)
    probed = HOSLConfig(cohort_size=2, batch_size=2, privacy=PrivacyConfig(clip=1.0, noise=4.0))
    extra = most_uploads(probed, sizes, 6, again)[0] - most_uploads(probed, sizes, 6)[0]
    assert extra == 2 * probed.releases > 2
