"""Special cases in which a method with auxiliary heads must equal another one."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.federated import (
    AlignmentConfig,
    CSEFSLConfig,
    FrozenConfig,
    FSLSAGEConfig,
    HeronSFLConfig,
    OptimizerConfig,
    SplitFedConfig,
)
from leansplit.models import AuxiliaryConfig, split_at
from leansplit.noise import DIRECTIONS
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.reference import cse_fsl, frozen, fsl_sage, heron_sfl, splitfed_v1, splitfed_v2
from leansplit.reference.auxiliary import with_head
from leansplit.tasks import Examples
from leansplit.zeroth_order import ESTIMATORS, ZerothOrderConfig

STILL = OptimizerConfig(lr=1e-30)  # a step so short that no float32 weight moves
SGD = OptimizerConfig(lr=0.2, lifetime="round")
SERVER_COPY = AuxiliaryConfig(kind="copy", initialise="server")


def split(cut_layer="1"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)]
        return split_at(nn.Sequential(*layers), cut_layer)


def clients(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        Examples(
            torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)
        )
        for n in sizes
    ]


def config(kind, **changes):
    defaults = {
        "cohort_size": 1, "batch_size": 8, "root_seed": 11,
        "client_optimizer": SGD, "server_optimizer": OptimizerConfig(lr=0.1),
    }  # fmt: skip
    return kind(**defaults | changes)


def moved(method, settings, data, num_rounds=1):
    """Return (how far theta_l moved [d_l], the trained model)."""
    model = split()
    start = trainable_parameters(with_head(model, data, settings))
    spec = ParameterSpec.of(start)
    before = spec.flatten(start)
    end = method(model, F.cross_entropy, data, settings, num_rounds)
    return spec.flatten(end) - before, model


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize(
    ("direction", "estimator"), list(zip(DIRECTIONS, itertools.cycle(ESTIMATORS), strict=False))
)
def test_heron_with_many_directions_takes_cse_fsls_step(direction, estimator):
    data = clients(30)
    exact, _ = moved(cse_fsl, config(CSEFSLConfig), data)
    zo = ZerothOrderConfig(
        num_perturbations=800,
        perturbation_scale=1e-2 if direction == "unit_sphere" else 1e-3,
        direction=direction,
        estimator=estimator,
    )
    estimated, _ = moved(heron_sfl, config(HeronSFLConfig, zeroth_order=zo), data)
    d = len(exact)
    assert exact.norm() > 0.01
    # The estimate is g plus noise of length about |g| sqrt(d / P).
    noise = (d / 800) ** 0.5
    assert torch.nn.functional.cosine_similarity(exact, estimated, dim=0) > 1 - noise**2
    assert abs(estimated.norm() / exact.norm() - 1) < 2 * noise


def test_one_direction_is_no_gradient():
    """The control of the test above: P = 1 points elsewhere and is about sqrt(d) too long."""
    data = clients(30)
    exact, _ = moved(cse_fsl, config(CSEFSLConfig), data)
    estimated, _ = moved(heron_sfl, config(HeronSFLConfig), data)
    assert torch.nn.functional.cosine_similarity(exact, estimated, dim=0) < 0.6


@pytest.mark.parametrize("method", ["cse", "heron"])
def test_the_servers_first_step_is_sflv2s(method):
    """Uploads are taken before the local step, so they are those of split federated learning."""
    data = clients(30, 12, 20)
    model, other = split(), split()
    settings = {"cohort_size": 3}
    if method == "cse":
        cse_fsl(model, F.cross_entropy, data, config(CSEFSLConfig, **settings), 1)
    else:
        heron_sfl(model, F.cross_entropy, data, config(HeronSFLConfig, **settings), 1)
    splitfed_v2(other, F.cross_entropy, data, config(SplitFedConfig, **settings), 1)
    assert_same_bits(model.server_model.state_dict(), other.server_model.state_dict())


def test_cse_fsl_with_the_server_as_head_takes_sfls_first_client_step():
    data = clients(30, 12)
    model, other = split(), split()
    settings = config(CSEFSLConfig, cohort_size=2, auxiliary=SERVER_COPY)
    cse_fsl(model, F.cross_entropy, data, settings, 1)
    sfl = config(SplitFedConfig, cohort_size=2, server_optimizer=STILL)
    splitfed_v2(other, F.cross_entropy, data, sfl, 1)
    assert_same_bits(model.client_model.state_dict(), other.client_model.state_dict())


@pytest.mark.parametrize("local_steps", [1, 3])
def test_fsl_sage_with_a_perfectly_aligned_head_takes_sfls_client_steps(local_steps):
    data = clients(30, 12, 20)
    settings = {"cohort_size": 2, "local_steps": local_steps, "server_optimizer": STILL}
    aligned, sfl, untaught = split(), split(), split()
    alignment = {"alignment_optimizer": STILL, "alignment": AlignmentConfig(period=1, epochs=1)}
    sage = config(FSLSAGEConfig, auxiliary=SERVER_COPY, **settings, **alignment)
    fsl_sage(aligned, F.cross_entropy, data, sage, 4)
    splitfed_v2(sfl, F.cross_entropy, data, config(SplitFedConfig, **settings), 4)
    assert_same_bits(aligned.full_state_dict(), sfl.full_state_dict())
    fsl_sage(untaught, F.cross_entropy, data, config(FSLSAGEConfig, **settings, **alignment), 4)
    assert not torch.equal(
        untaught.client_model.state_dict()["0.weight"], sfl.client_model.state_dict()["0.weight"]
    )


def test_fsl_sages_alignment_brings_its_client_nearer_to_sfls():
    """A still server: what differs from SFL is the imitated gradient alone."""
    data = clients(30)
    distance = {}
    sfl = split()
    splitfed_v2(sfl, F.cross_entropy, data, config(SplitFedConfig, server_optimizer=STILL), 10)
    wanted = sfl.client_model.state_dict()["0.weight"]
    for epochs, optimizer in ((1, STILL), (40, OptimizerConfig(name="adamw", lr=0.02))):
        model = split()
        settings = config(
            FSLSAGEConfig,
            auxiliary=AuxiliaryConfig(kind="copy"),
            server_optimizer=STILL,
            alignment=AlignmentConfig(period=2, epochs=epochs),
            alignment_optimizer=optimizer,
        )
        fsl_sage(model, F.cross_entropy, data, settings, 10)
        distance[epochs] = (model.client_model.state_dict()["0.weight"] - wanted).norm().item()
    assert distance[40] < 0.6 * distance[1]


@pytest.mark.parametrize("lifetime", ["run", "round"])
def test_with_one_client_all_server_modes_are_one(lifetime):
    data = clients(30)
    optimizer = OptimizerConfig(lr=0.1, momentum=0.9, lifetime=lifetime)
    models = []
    for mode in ("sequential", "averaged", "summed"):
        model = split()
        settings = config(
            CSEFSLConfig, server_mode=mode, local_steps=4, upload_period=2,
            server_optimizer=optimizer,
        )  # fmt: skip
        cse_fsl(model, F.cross_entropy, data, settings, 3)
        models.append(model.full_state_dict())
    assert_same_bits(models[0], models[1])
    assert_same_bits(models[0], models[2])


def test_the_averaged_server_is_sflv1s():
    data = clients(16, 16, 16)
    model, other = split(), split()
    settings = {"cohort_size": 3, "server_optimizer": OptimizerConfig(lr=0.1, momentum=0.9)}
    averaged = config(CSEFSLConfig, server_mode="averaged", client_optimizer=STILL, **settings)
    cse_fsl(model, F.cross_entropy, data, averaged, 3)
    sfl = config(SplitFedConfig, **(settings | {"client_optimizer": STILL}))
    splitfed_v1(other, F.cross_entropy, data, sfl, 3)
    assert_same_bits(model.full_state_dict(), other.full_state_dict())


def test_the_summed_server_is_the_clients_steps_added_up():
    """Eq. 7: with SGD, three clients' sum moves theta_s by the sum of what each alone would."""
    data = clients(16, 16, 16)
    start = split().server_model.state_dict()["4.weight"]
    still = {"client_optimizer": STILL}
    together = split()
    cse_fsl(
        together, F.cross_entropy, data,
        config(CSEFSLConfig, cohort_size=3, server_mode="summed", **still), 1,
    )  # fmt: skip
    from leansplit.federated import take_batch
    from leansplit.reference.auxiliary import Server

    total = torch.zeros_like(start)
    for m in range(3):
        alone = split()
        x, y = take_batch(data[m], 11, 1, m, batch_size=8)
        server = Server(alone, F.cross_entropy, config(CSEFSLConfig, server_mode="summed"))
        server.train(1, {m: [(alone.client_model(x), y)]}, {m: 8})
        total += alone.server_model.state_dict()["4.weight"] - start
    moved_by = together.server_model.state_dict()["4.weight"] - start
    torch.testing.assert_close(moved_by, total, rtol=1e-4, atol=1e-6)


FROZEN = {"frozen_client": True, "local_steps": 3, "upload_period": 2}


@pytest.mark.parametrize(("method", "kind"), [(cse_fsl, CSEFSLConfig), (heron_sfl, HeronSFLConfig)])
def test_a_frozen_client_model_never_moves_and_its_head_does(method, kind):
    data, model, start = clients(30, 12), split(), split()
    settings = config(kind, cohort_size=2, **FROZEN)
    before = trainable_parameters(with_head(split(), data, settings).auxiliary)
    end = method(model, F.cross_entropy, data, settings, 3)
    assert_same_bits(model.client_model.state_dict(), start.client_model.state_dict())
    for name, value in before.items():
        assert not torch.equal(value, end[f"auxiliary.{name}"])


@pytest.mark.parametrize(("method", "kind"), [(cse_fsl, CSEFSLConfig), (heron_sfl, HeronSFLConfig)])
def test_with_one_client_and_step_a_frozen_clients_server_is_that_of_the_frozen_method(
    method, kind
):
    data, model, other = clients(30), split(), split()
    method(model, F.cross_entropy, data, config(kind, frozen_client=True), 5)
    settings = FrozenConfig(
        cohort_size=1, batch_size=8, root_seed=11, server_optimizer=OptimizerConfig(lr=0.1)
    )
    frozen(other, F.cross_entropy, data, settings, 5)
    assert_same_bits(model.full_state_dict(), other.full_state_dict())


def test_with_a_frozen_client_the_server_does_not_depend_on_the_order_of_the_head():
    """The head is the client's alone: whoever trains it, the server sees the same z."""
    data = clients(30, 12)
    models = []
    for method, kind in ((cse_fsl, CSEFSLConfig), (heron_sfl, HeronSFLConfig)):
        model = split()
        method(model, F.cross_entropy, data, config(kind, cohort_size=2, **FROZEN), 3)
        models.append(model.full_state_dict())
    assert_same_bits(*models)


def test_heron_with_a_frozen_client_and_many_directions_takes_cse_fsls_step():
    data = clients(30)
    exact, _ = moved(cse_fsl, config(CSEFSLConfig, frozen_client=True), data)
    zo = ZerothOrderConfig(num_perturbations=1500)
    frozen_heron = config(HeronSFLConfig, frozen_client=True, zeroth_order=zo)
    estimated, _ = moved(heron_sfl, frozen_heron, data)
    noise = (len(exact) / 1500) ** 0.5
    assert torch.nn.functional.cosine_similarity(exact, estimated, dim=0) > 1 - noise**2


@pytest.mark.parametrize(
    ("steps", "period", "expected"),
    [(1, 1, [0]), (3, 1, [0, 1, 2]), (5, 2, [0, 2, 4]), (6, 3, [0, 3]), (5, 5, [0])],
)
def test_every_kth_step_is_uploaded(steps, period, expected):
    settings = config(CSEFSLConfig, local_steps=steps, upload_period=period)
    assert list(settings.upload_steps) == expected
    assert len(expected) == -(-steps // period)


def test_heron_is_deterministic_and_its_directions_are_private():
    """Two clients with the same data and batches still probe different directions."""
    data = clients(8) * 2
    first, model = moved(heron_sfl, config(HeronSFLConfig, cohort_size=2), data, 2)
    again, same = moved(heron_sfl, config(HeronSFLConfig, cohort_size=2), data, 2)
    assert torch.equal(first, again)
    assert_same_bits(model.full_state_dict(), same.full_state_dict())
    alone, _ = moved(heron_sfl, config(HeronSFLConfig), data[:1], 1)
    both, _ = moved(heron_sfl, config(HeronSFLConfig, cohort_size=2), data, 1)
    assert not torch.allclose(alone, both, rtol=1e-2)
