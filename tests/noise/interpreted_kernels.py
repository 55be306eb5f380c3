"""The fused kernels, run by Triton's interpreter; ``test_fused.py`` starts this file."""

import logging

import pytest
import torch

from leansplit.noise import draw_perturbation, fused
from leansplit.noise.stream import blank_noise
from leansplit.parameters import ParameterSpec
from leansplit.zeroth_order import ZerothOrderConfig, estimate, perturbed

CPU = torch.device("cpu")


@pytest.mark.parametrize("direction", fused.FUSED_DIRECTIONS)
@pytest.mark.parametrize("num_elements", [1, 7, 1024, 2048, 2049, 5003])
@pytest.mark.parametrize("num_directions", [1, 3])
def test_sums_have_the_bits_of_the_stream(direction, num_elements, num_directions):
    seeds = [0, (1 << 64) - 1, 1 << 63][:num_directions]
    scales = [1e-3, -0.37, 2.5][:num_directions]
    base = draw_perturbation(5, num_elements)
    expected = base.clone()
    for seed, scale in zip(seeds, scales, strict=True):
        expected += scale * draw_perturbation(seed, num_elements, direction=direction)
    kept = base.clone()
    assert torch.equal(fused.add_scaled(base, seeds, scales, direction), expected)
    assert torch.equal(base, kept)


@pytest.mark.parametrize("direction", ["gaussian", "rademacher", "sphere"])
def test_probes_and_estimates_take_it_and_keep_their_bits(direction, monkeypatch):
    config = ZerothOrderConfig(num_perturbations=2, direction=direction)
    theta = draw_perturbation(9, 3001)
    spec = ParameterSpec.of({"weights": theta})
    seeds, differences = (3, 4), torch.tensor([0.5, -0.25], dtype=torch.float64)

    def both():
        return (
            perturbed(theta, -config.perturbation_scale, 3, config),
            estimate(spec, seeds, differences, config, device=CPU),
        )

    calls = []
    add_scaled = fused.add_scaled
    monkeypatch.setattr(
        fused, "add_scaled", lambda *arguments: calls.append(1) or add_scaled(*arguments)
    )
    assert fused._gives_the_bits_of_the_cpu(CPU)
    calls.clear()
    in_one_kernel = both()
    assert len(calls) == (0 if direction == "sphere" else 2)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert all(map(torch.equal, in_one_kernel, both()))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda base, *_: base, "its bits are not those of the CPU"),
        (lambda *_: 1 / 0, "division by zero"),
    ],
)
def test_a_kernel_that_fails_its_trial_is_left_out(broken, reason, monkeypatch, caplog):
    monkeypatch.setattr(fused, "add_scaled", broken)
    fused._gives_the_bits_of_the_cpu.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert fused.fused_kernel_for(CPU, "gaussian") is None
        assert fused.fused_kernel_for(CPU, "rademacher") is None
    assert caplog.messages == [f"no fused perturb kernel on cpu: {reason}"]
    fused._gives_the_bits_of_the_cpu.cache_clear()


def test_plans_draw_nothing_with_it():
    with blank_noise():
        assert fused.fused_kernel_for(CPU, "gaussian") is None
