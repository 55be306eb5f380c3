"""Two orders on one device: where the graph begins, what is rebuilt, what fits in memory."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.errors import UserError
from leansplit.federated import HOFLConfig, OptimizerConfig, build_optimizer
from leansplit.hybrid_order import (
    HybridTraining,
    fit_boundaries,
    measurable_step,
    replay,
    segments_at,
)
from leansplit.hybrid_order.memory import _peak_bytes
from leansplit.hybrid_order.training import zeroth_part
from leansplit.models import SplitModel, cut_layers, split_at
from leansplit.noise import perturbation_seeds
from leansplit.parameters import trainable_parameters
from leansplit.zeroth_order import ZerothOrderConfig
from tests.no_backward import NoBackward

OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.1),
    "momentum": OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.05),
}


def network(*below):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return split_at(
            nn.Sequential(
                nn.Linear(4, 6), *below, nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
            ),
            "0",
        )


def batch(seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator), torch.randint(
        0, 3, (size,), generator=generator
    )


def config(optimizer="sgd", **changes):
    return HOFLConfig(
        **{"cohort_size": 1, "client_optimizer": OPTIMIZERS[optimizer], "local_steps": 3} | changes
    )


def train(model, boundary, settings, moments=None):
    """Take the local steps; return (training, seeds [E, P], scalars [E, P], checksum)."""
    training = HybridTraining(segments_at(model, boundary), F.cross_entropy, settings, moments)
    seeds, scalars = [], []
    for h in range(settings.local_steps):
        drawn = perturbation_seeds(
            0, settings.zeroth_order.num_perturbations, round=1, client_id=0, local_step=h
        )
        _, v = training.step(*batch(h), drawn, dropout_seed=h)
        seeds.append(drawn)
        scalars.append(v)
    return training, torch.tensor(seeds), torch.stack(scalars), training.finish()


# --- segments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [("none", 0), ("0", 30), ("cut", 30), ("1", 30), ("2", 65), ("3", 65), ("all", 83)],
)
def test_segments_share_the_models_parameters_under_its_names(boundary, expected):
    model = network()
    segments = segments_at(model, boundary)
    assert segments.num_zeroth_elements == expected
    joined = segments.zeroth_parameters | segments.first_parameters
    whole = trainable_parameters(model.full_model)
    assert joined.keys() == whole.keys()
    assert all(joined[name].data_ptr() == whole[name].data_ptr() for name in whole)


def test_a_boundary_with_nothing_to_train_below_it_is_none():
    with torch.random.fork_rng(devices=[]):
        layers = nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)
    model = split_at(nn.Sequential(*layers), "1")
    segments = segments_at(model, "0")
    assert segments.zeroth is None
    assert len(segments.first_parameters) == 4


def test_halves_put_together_by_hand_have_boundaries_too():
    with torch.random.fork_rng(devices=[]):
        below, above = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 3))
    model = SplitModel(below, above, "wherever")
    segments = segments_at(model, "cut")
    assert segments.num_zeroth_elements == 30
    joined = segments.zeroth_parameters | segments.first_parameters
    assert joined.keys() == trainable_parameters(model.full_model).keys()


@pytest.mark.parametrize("boundary", ["conv1", "", "None"])
def test_an_unknown_boundary_names_those_that_exist(boundary):
    with pytest.raises(UserError, match=r"unknown order boundary.*allowed: 0, 1, 2, 3, all"):
        segments_at(network(), boundary)


# --- a local step -------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize(
    ("boundary", "is_below"), [("0", False), ("1", True), ("2", True), ("4", True), ("all", True)]
)
def test_backpropagation_never_passes_the_boundary(boundary, is_below, estimator):
    model = network(NoBackward())
    settings = config(zeroth_order=ZerothOrderConfig(num_perturbations=2, estimator=estimator))
    before = {name: value.clone() for name, value in model.full_state_dict().items()}
    if not is_below:  # the forbidden layer is above: the test can fail
        with pytest.raises(AssertionError, match="was differentiated"):
            train(model, boundary, settings)
        return
    train(model, boundary, settings)
    assert all(not torch.equal(v, before[k]) for k, v in model.full_state_dict().items())
    below = segments_at(model, boundary).zeroth
    assert all(parameter.grad is None for parameter in below.parameters())


def test_everything_zeroth_order_needs_no_backward_anywhere():
    class NoBackwardLoss(nn.Module):
        def forward(self, outputs, labels):
            return F.cross_entropy(NoBackward()(outputs), labels)

    step = measurable_step(segments_at(network(), "all"), NoBackwardLoss(), config(), *batch())
    step()


def test_the_upper_half_steps_as_under_plain_backpropagation():
    """One step: the gradient above the boundary is the exact one, taken at the same anchor."""
    for boundary in ("none", "0", "2"):
        model, plain = network(), network()
        x, y = batch()
        training = HybridTraining(segments_at(model, boundary), F.cross_entropy, config())
        loss, _ = training.step(x, y, (1, 2), dropout_seed=0)
        value = F.cross_entropy(plain.full_model(x), y)
        value.backward()
        build_optimizer(OPTIMIZERS["sgd"], plain.full_model.parameters()).step()
        assert loss == value.item()
        expected = trainable_parameters(plain.full_model)
        for name, got in segments_at(model, boundary).first_parameters.items():
            assert torch.equal(got, expected[name]), (boundary, name)


@pytest.mark.parametrize("boundary", ["0", "3", "all"])
def test_many_directions_approach_the_true_gradient(boundary):
    settings = config(
        local_steps=1,
        zeroth_order=ZerothOrderConfig(num_perturbations=1500, perturbation_scale=1e-2),
    )
    model, plain = network(), network()
    before = {k: v.clone() for k, v in segments_at(model, boundary).zeroth_parameters.items()}
    train(model, boundary, settings)
    x, y = batch(0)
    F.cross_entropy(plain.full_model(x), y).backward()
    truth = {name: p.grad for name, p in plain.full_model.named_parameters()}
    moved = segments_at(model, boundary).zeroth_parameters
    ours = torch.cat([((before[k] - moved[k]) / 0.1).reshape(-1) for k in moved])
    exact = torch.cat([truth[k].reshape(-1) for k in moved])
    noise = (len(exact) / 1500) ** 0.5  # the estimate is g plus noise of about |g| sqrt(d / P)
    assert noise < 0.25
    assert F.cosine_similarity(ours, exact, dim=0) > 1 - noise**2
    assert abs(ours.norm() / exact.norm() - 1) < 2 * noise


# --- replay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("boundary", ["0", "2", "all"])
def test_replay_rebuilds_the_lower_half_bit_for_bit(boundary, optimizer):
    model, settings = network(), config(optimizer)
    start = {k: v.clone() for k, v in segments_at(model, boundary).zeroth_parameters.items()}
    training, seeds, scalars, checksum = train(model, boundary, settings)
    rebuilt = replay(start, seeds, scalars, settings)
    assert rebuilt.checksum == checksum
    trained = segments_at(model, boundary).zeroth_parameters
    assert all(torch.equal(rebuilt.parameters[name], trained[name]) for name in trained)

    # And again from there, with the moments of the first time.
    moments = training.moments()
    _, seeds, scalars, checksum = train(model, boundary, settings, moments)
    again = replay(rebuilt.parameters, seeds, scalars, settings, rebuilt.moments())
    assert again.checksum == checksum
    assert zeroth_part(moments).keys() == rebuilt.moments().keys()
    forgetful = replay(rebuilt.parameters, seeds, scalars, settings)
    assert (forgetful.checksum == checksum) is (optimizer == "sgd")


def test_replay_notices_a_wrong_scalar():
    model, settings = network(), config()
    start = {k: v.clone() for k, v in segments_at(model, "0").zeroth_parameters.items()}
    _, seeds, scalars, checksum = train(model, "0", settings)
    scalars[1, 0] += 1e-3
    assert replay(start, seeds, scalars, settings).checksum != checksum


# --- memory -------------------------------------------------------------------------------------


def images():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        below = nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)
        above = nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 2)
        return split_at(nn.Sequential(*below, *above), "2")


IMAGES = torch.zeros(16, 1, 16, 16), torch.zeros(16, dtype=torch.long)


def peaks(model, settings):
    names = ["none", *cut_layers(model.full_model), "all"]
    return {
        name: _peak_bytes(
            segments_at(copy.deepcopy(model), name), F.cross_entropy, settings, *IMAGES
        )
        for name in names
    }


def test_a_budget_gets_the_smallest_zeroth_order_segment_that_fits():
    model, settings = images(), config()
    before = {name: value.clone() for name, value in model.full_state_dict().items()}
    measured = peaks(model, settings)
    assert measured["all"] < measured["none"]
    budgets = tuple(sorted({peak / 1e6 for peak in measured.values()}))
    fitted = fit_boundaries(
        dataclasses.replace(settings, memory_budgets_mb=budgets), model, F.cross_entropy, *IMAGES
    )
    assert fitted.memory_budgets_mb == () and len(fitted.boundaries) == len(budgets)
    sizes = {name: segments_at(model, name).num_zeroth_elements for name in measured}
    for budget, name in zip(budgets, fitted.boundaries, strict=True):
        assert measured[name] <= budget * 1e6
        assert sizes[name] == min(sizes[n] for n in measured if measured[n] <= budget * 1e6)
    assert fitted.boundaries[-1] == "none"
    assert all(torch.equal(v, before[k]) for k, v in model.full_state_dict().items())
    again = dataclasses.replace(settings, memory_budgets_mb=budgets)
    assert fit_boundaries(again, model, F.cross_entropy, *IMAGES) == fitted


def test_candidates_can_be_limited():
    settings = config(memory_budgets_mb=(1e3,), boundaries=("all", "2"))
    assert fit_boundaries(settings, images(), F.cross_entropy, *IMAGES).boundaries == ("2",)


def test_a_budget_that_is_too_small_says_what_would_do():
    model = images()
    measured = peaks(model, config())
    least = min(measured, key=measured.get)
    settings = config(memory_budgets_mb=(1e3, 1e-3))
    with pytest.raises(UserError, match=r"no boundary fits in 0\.001 MB") as error:
        fit_boundaries(settings, model, F.cross_entropy, *IMAGES)
    assert f"{measured[least] / 1e6:.3f} MB, at boundary {least!r}" in str(error.value)


def test_without_budgets_nothing_is_measured():
    settings = config(boundaries=("0",))
    assert fit_boundaries(settings, images(), F.cross_entropy, *IMAGES) is settings


# --- settings -----------------------------------------------------------------------------------


def test_boundaries_are_handed_out_in_turn_or_shuffled():
    settings = config(boundaries=("none", "0", "all"))
    assert list(settings.boundaries_of(range(7)).values()) == [
        "none", "0", "all", "none", "0", "all", "none",
    ]  # fmt: skip
    shuffled = dataclasses.replace(settings, boundary_assignment="shuffled")
    assert sorted(shuffled.boundaries_of(range(30)).values()) == sorted(
        settings.boundaries_of(range(30)).values()
    )
    assert shuffled.boundaries_of(range(30)) != settings.boundaries_of(range(30))
    other = dataclasses.replace(shuffled, root_seed=1)
    assert other.boundaries_of(range(30)) != shuffled.boundaries_of(range(30))
    assert set(config().boundaries_of(range(4)).values()) == {"none", "cut"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension_preference": 1.0}, r"must be in \[0, 1\)"),
        ({"dimension_preference": -0.1}, r"must be in \[0, 1\)"),
        ({"dimension_preference": float("nan")}, r"must be in \[0, 1\)"),
        ({"boundary_assignment": "random"}, "unknown boundary assignment 'random'"),
        ({"memory_budgets_mb": (3.0, 0.0)}, "memory_budgets_mb must be a finite number above 0"),
        ({"local_steps": 0}, "local_steps must be at least 1"),
    ],
)
def test_settings_that_no_round_can_be_run_with_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_budgets_must_be_turned_into_boundaries_first():
    with pytest.raises(UserError, match="fit_boundaries"):
        config(memory_budgets_mb=(1.0,)).boundaries_of(range(3))
