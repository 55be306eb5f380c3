"""Clipping and noise on uploads: equal to the loops, nothing where nothing is asked for."""

import dataclasses

import pytest
import torch
from torch import nn

from leansplit.clients.app import split_client_app
from leansplit.errors import UserError
from leansplit.federated import HOSFLConfig, HOSLConfig, PrivacyConfig
from leansplit.models import split_at
from leansplit.server_app.config import run_config
from leansplit.server_app.results import config_hash
from leansplit.strategies import HOSFL, Deployment
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples
from leansplit.zeroth_order import ProbedSmashedData

NOISE = {"privacy.clip": 0.5, "privacy.noise": 0.1, "privacy.reproducible": True}
SCALARS = {"privacy.scalar_clip": 0.01, "privacy.scalar_noise": 0.5}
SCALARS_ALONE = SCALARS | {"privacy.reproducible": True}
METHODS = ["ho-sfl", "sflv1", "sflv2", "cse-fsl", "heron-sfl", "fsl-sage"]
METHODS += ["hosl", "mu-splitfed", "zo-sfl", "frozen", "decomfl"]
KEYS = {"ho-sfl": NOISE | SCALARS, "decomfl": SCALARS_ALONE}


@pytest.mark.parametrize("method", METHODS)
def test_noise_equals_the_reference_loop(method, configure, run_in_process, reference_checksum):
    noisy, plain = (configure(method, rounds=3, **more) for more in (KEYS.get(method, NOISE), {}))
    outcome = run_in_process(noisy)
    assert outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(noisy)
    assert outcome.final_model_checksum != run_in_process(plain).final_model_checksum
    # The same tensors cross, and only their values differ.
    rounds = [[e for e in o.ledger if e.round] for o in (outcome, run_in_process(plain))]
    kinds = [sorted((e.round, e.client_id, e.kind, e.num_bytes) for e in r) for r in rounds]
    assert [k for k in kinds[0] if k[2] == "smashed_data"] == [
        k for k in kinds[1] if k[2] == "smashed_data"
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_clip_that_nothing_reaches_changes_no_bit(method, configure, run_in_process):
    clips = ("privacy.clip", "privacy.scalar_clip")
    keys = {clip: 1e9 for clip in clips if clip in KEYS.get(method, NOISE)}
    clipped, plain = (run_in_process(configure(method, rounds=3, **more)) for more in (keys, {}))
    assert clipped.final_model_checksum == plain.final_model_checksum


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("hosl", {"probe.estimator": "forward"}),
        ("zo-sfl", {"probe.estimator": "forward", "local_steps": 2}),
        ("mu-splitfed", {"probe.num_perturbations": 2}),
        ("frozen", {"features_once": True}),
    ],
)
def test_other_uploads_around_the_weights_and_features_once(
    method, keys, configure, run_in_process, reference_checksum
):
    """No two tensors of a run share their noise: the difference of two would have none."""
    config = configure(method, rounds=3, **NOISE, **keys)
    outcome = run_in_process(config)
    assert outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(config)


def test_every_view_of_a_sample_has_noise_of_its_own():
    privacy = PrivacyConfig(clip=1.0, noise=0.5, reproducible=True)
    config = HOSLConfig(cohort_size=1, privacy=privacy)
    z = torch.zeros(3, 5)
    views = ProbedSmashedData(z, z.expand(2, 3, 5), z.expand(2, 3, 5))
    released = [config.released_probes(views, t, 0, u) for t, u in ((1, 0), (1, 1), (2, 0))]
    rows = torch.cat([torch.cat([r.anchor[None], r.plus, r.minus]) for r in released]).flatten()
    assert len(rows.unique()) == len(rows) == 3 * 5 * 15


def test_secret_noise_is_new_in_every_run(configure, run_in_process):
    config = configure("ho-sfl", rounds=2, **{**NOISE, "privacy.reproducible": False})
    first, second = (run_in_process(config, afresh=True) for _ in range(2))
    assert first.final_model_checksum != second.final_model_checksum
    assert first.events == second.events == {}


def test_unset_it_leaves_hashes_as_they_were():
    config = run_config("ho-sfl", {})
    assert "privacy" not in config.to_dict()
    assert config_hash(config.to_dict()) != config_hash(run_config("ho-sfl", NOISE).to_dict())


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("ho-sfl", {"privacy.noise": 1}, "privacy.noise is relative to clip"),
        ("ho-sfl", {"privacy.clip": -1}, "privacy.clip must be a finite number from 0, got -1"),
        ("ho-sfl", {"privacy.clip": 1, "privacy.delta": 1}, "privacy.delta must be above 0"),
        ("ho-sfl", {"privacy.clip": 1, "checkpoint_every": 5}, "privacy.reproducible"),
        ("ho-sfl", {"privacy.clip": 1, "probe_ahead": True}, "which the noise, divided by"),
        ("hosl", {"privacy.clip": 1, "privacy.scalar_clip": 1}, "upload no scalars"),
        ("sflv1", {"privacy.scalar_clip": 1}, "upload no scalars"),
        ("fedavg", {"privacy.clip": 1}, "fedavg upload no smashed data"),
        ("fedzo", {"privacy.scalar_clip": 1}, "take one of ho-sfl, decomfl$"),
        ("decomfl", {"privacy.clip": 1}, "upload no smashed data"),
    ],
)
def test_what_cannot_be_protected_is_one_line(method, keys, message):
    with pytest.raises(UserError, match=message) as caught:
        run_config(method, keys)
    assert "\n" not in str(caught.value)


def test_a_client_model_that_mixes_samples_is_refused():
    """What is protected is one sample's smashed data, so no other sample may depend on it."""

    def build():
        return split_at(
            nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 2)
            ),
            "1",
        )

    def data(client_id):
        return Examples(torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))

    config = HOSFLConfig(cohort_size=2, privacy=PrivacyConfig(clip=1.0))
    for settings in (config, dataclasses.replace(config, privacy=PrivacyConfig())):
        deployment = Deployment(num_clients=2)
        strategy = HOSFL(build(), nn.functional.cross_entropy, settings, deployment=deployment)
        grid = InProcessGrid(split_client_app(build, data), 2)
        if settings is config:
            with pytest.raises(UserError, match=r"layer '1' \(BatchNorm1d\) mixes"):
                strategy.start(grid, strategy.initial_arrays(), num_rounds=1)
        else:
            strategy.start(grid, strategy.initial_arrays(), num_rounds=1)
