import copy
import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from leansplit.costs import peak_tensor_bytes
from leansplit.errors import UserError
from leansplit.federated import (
    OPTIMIZERS,
    OptimizerConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)

CONFIGS = {
    "sgd": OptimizerConfig(lr=0.1),
    "sgd-decay": OptimizerConfig(lr=0.1, weight_decay=0.05),
    "momentum": OptimizerConfig(lr=0.1, momentum=0.9),
    "adamw": OptimizerConfig(name="adamw", lr=0.02),
    "adamw-decay": OptimizerConfig(
        name="adamw", lr=0.02, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1
    ),
}


def start():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, 4, generator=generator, requires_grad=True),
        torch.randn(5, generator=generator, requires_grad=True),
    ]


def step(optimizer, parameters, index):
    generator = torch.Generator().manual_seed(1000 + index)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def bits(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_lifetime_batch_is_a_new_optimizer_for_every_step(config):
    parameters, expected = start(), start()
    kept = build_optimizer(dataclasses.replace(config, lifetime="batch"), parameters)
    for index in range(4):
        step(kept, parameters, index)
        assert optimizer_state(kept) == {}
        step(build_optimizer(config, expected), expected, index)
    assert equal(parameters, expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_state_round_trip_continues_bit_for_bit(config, stop):
    parameters = start()
    optimizer = build_optimizer(config, parameters)
    for index in range(stop):
        step(optimizer, parameters, index)
    saved, state = bits(parameters), optimizer_state(optimizer)
    for index in range(stop, 8):
        step(optimizer, parameters, index)

    resumed = [value.requires_grad_() for value in saved]
    other = build_optimizer(config, resumed)
    load_optimizer_state_(other, state)
    for index in range(stop, 8):
        step(other, resumed, index)
    assert equal(bits(resumed), bits(parameters))
    final, expected = optimizer_state(other), optimizer_state(optimizer)
    assert final.keys() == expected.keys()
    assert equal(final.values(), expected.values())


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_moments_matter(name):
    """Otherwise the round trip above would show nothing."""
    parameters = start()
    optimizer = build_optimizer(CONFIGS[name], parameters)
    step(optimizer, parameters, 0)
    fresh_parameters = [value.requires_grad_() for value in bits(parameters)]
    fresh = build_optimizer(CONFIGS[name], fresh_parameters)
    step(optimizer, parameters, 1)
    step(fresh, fresh_parameters, 1)
    assert not equal(bits(parameters), bits(fresh_parameters))


def test_names_of_the_moments():
    named = {}
    for name, config in CONFIGS.items():
        parameters = start()
        optimizer = build_optimizer(config, parameters)
        assert optimizer_state(optimizer) == {}
        step(optimizer, parameters, 0)
        named[name] = sorted(optimizer_state(optimizer))
    assert named["sgd"] == named["sgd-decay"] == []
    assert named["momentum"] == ["0.momentum_buffer", "1.momentum_buffer"]
    assert named["adamw"] == [
        *("0.exp_avg", "0.exp_avg_sq", "0.step"),
        *("1.exp_avg", "1.exp_avg_sq", "1.step"),
    ]


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_the_state_is_a_copy_both_ways(name):
    parameters = start()
    optimizer = build_optimizer(CONFIGS[name], parameters)
    step(optimizer, parameters, 0)
    state = optimizer_state(optimizer)
    kept = copy.deepcopy(state)
    step(optimizer, parameters, 1)
    assert equal(state.values(), kept.values())
    other_parameters = start()
    other = build_optimizer(CONFIGS[name], other_parameters)
    load_optimizer_state_(other, state)
    step(other, other_parameters, 1)
    assert equal(state.values(), kept.values())


def test_loading_replaces_what_was_there():
    parameters = start()
    optimizer = build_optimizer(CONFIGS["momentum"], parameters)
    step(optimizer, parameters, 0)
    load_optimizer_state_(optimizer, {})
    assert optimizer_state(optimizer) == {}


def test_sgd_and_adamw_by_hand():
    (theta,) = parameters = [torch.tensor([1.0], requires_grad=True)]
    optimizer = build_optimizer(OptimizerConfig(lr=0.5, momentum=0.5, weight_decay=0.1), parameters)
    expected, buffer = 1.0, 0.0
    for gradient in (2.0, -1.0, 0.5):
        theta.grad = torch.tensor([gradient])
        optimizer.step()
        buffer = 0.5 * buffer + gradient + 0.1 * expected
        expected -= 0.5 * buffer
    assert theta.item() == pytest.approx(expected, rel=1e-6)

    (theta,) = parameters = [torch.tensor([1.0], requires_grad=True)]
    config = OptimizerConfig(name="adamw", lr=0.1, beta1=0.8, beta2=0.9, eps=0.01, weight_decay=0.2)
    optimizer = build_optimizer(config, parameters)
    expected, m, v = 1.0, 0.0, 0.0
    for t, gradient in enumerate((2.0, -1.0, 0.5), start=1):
        theta.grad = torch.tensor([gradient])
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        expected *= 1 - 0.1 * 0.2  # decoupled
        expected -= 0.1 * (m / (1 - 0.8**t)) / (math.sqrt(v / (1 - 0.9**t)) + 0.01)
    assert theta.item() == pytest.approx(expected, rel=1e-6)


def test_nothing_to_train():
    assert build_optimizer(OptimizerConfig(), []) is None
    assert build_optimizer(OptimizerConfig(), iter(())) is None
    assert optimizer_state(None) == {}
    load_optimizer_state_(None, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adam"}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"lifetime": "rounds"}, "unknown optimizer lifetime 'rounds'; did you mean 'round'"),
        ({"lr": 0}, "^lr must be .* got 0"),
        ({"lr": -0.1}, "got -0.1"),
        ({"lr": math.inf}, "got inf"),
        ({"lr": math.nan}, "got nan"),
        ({"eps": 0.0}, "^eps must be"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, "got -0.1"),
        ({"name": "adamw", "momentum": 0.5}, "adamw has no momentum"),
        ({"beta1": 1.0}, "beta1 must be"),
        ({"beta2": math.nan}, "beta2 must be"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"weight_decay": math.inf}, "weight_decay"),
        ({"weight_decay": math.nan}, "weight_decay"),
    ],
)
def test_config_errors(changes, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**changes)


def test_every_name_builds():
    for name in OPTIMIZERS:
        assert build_optimizer(OptimizerConfig(name=name), start()) is not None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_are_torchs(name):
    """The same bits in every step, though torch's compiler is left out."""
    config = OptimizerConfig(name=name, lr=0.03, weight_decay=0.1)
    plain = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    ours, theirs = (torch.nn.Parameter(torch.arange(5.0) - 2) for _ in range(2))
    first = build_optimizer(config, [ours])
    second = plain([theirs], lr=0.03, weight_decay=0.1)
    for t in range(1, 4):
        for parameter, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad(set_to_none=True)
            (parameter**2 * t).sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        assert torch.equal(ours, theirs) and ours.requires_grad


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(300_001,), (131_072,), (3, 90_000)])
def test_large_parameters_are_stepped_in_parts_to_the_bits_of_the_whole(shape, weight_decay):
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(shape, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    first = build_optimizer(
        OptimizerConfig(name="adamw", lr=0.01, weight_decay=weight_decay), [ours]
    )
    second = torch.optim.AdamW([theirs], lr=0.01, weight_decay=weight_decay)
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    assert torch.equal(ours, theirs)
    moments, expected = optimizer_state(first), optimizer_state(second)
    assert moments.keys() == expected.keys() and moments["0.step"] == 3
    assert all(torch.equal(moments[name], expected[name]) for name in expected)


def test_a_step_of_adamw_holds_no_tensors_of_the_size_of_its_parameters():
    d = 1_000_000
    parameter, gradient = torch.ones(d), torch.ones(d)
    optimizer = build_optimizer(OptimizerConfig(name="adamw"), [parameter])
    parameter.grad = gradient
    optimizer.step()
    held = 4 * 4 * d  # parameter, gradient, two moments
    assert held < peak_tensor_bytes(optimizer.step) < held + 2**21
    plain = torch.optim.AdamW([parameter])
    plain.step()
    assert peak_tensor_bytes(plain.step) > held + 4 * d


def test_a_process_that_trains_does_not_import_torchs_compiler():
    code = """
import sys, torch
from leansplit.federated import OPTIMIZERS, OptimizerConfig, build_optimizer
for name in OPTIMIZERS:
    parameter = torch.ones(2, requires_grad=True)
    optimizer = build_optimizer(OptimizerConfig(name=name), [parameter])
    (parameter**2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
