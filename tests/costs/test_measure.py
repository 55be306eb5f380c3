import functools

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from leansplit.allocation import allocated_as
from leansplit.costs import (
    ClientStep,
    count_flops,
    measure_step,
    peak_tensor_bytes,
)
from leansplit.costs.allocator import allocator_peak
from leansplit.costs.flop_formulas import FLOP_FORMULAS
from leansplit.models import build_model, split_at
from leansplit.noise import perturbation_seeds
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.telling import leave_out, repeated_pass
from leansplit.zeroth_order import (
    SurrogateObjective,
    ZerothOrderConfig,
    forward_only,
    probe,
    unshared_directions,
)
from tests.language import config_json


def linear(inputs, outputs, *, bias=True):
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.01)
    return layer


# --- FLOPs --------------------------------------------------------------------------------------

FORWARD = 2 * 4 * 8 * 16  # 2 B in out


def test_flops_of_a_linear_layer():
    layer, x = linear(8, 16), torch.ones(4, 8)
    assert count_flops(lambda: layer(x)) == FORWARD
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * FORWARD  # and dW
    x.requires_grad_()
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * FORWARD  # and dx


def test_flops_are_the_same_in_inference_mode():
    layer, x = linear(8, 16), torch.ones(4, 8)
    parameters = trainable_parameters(layer)
    assert count_flops(lambda: forward_only(layer, parameters, x)) == FORWARD


def test_flops_of_a_convolution():
    layer = nn.Conv2d(3, 5, 3, padding=1, stride=2, device="meta").to_empty(device="cpu")
    x = torch.ones(2, 3, 8, 8)
    forward = 2 * 2 * (5 * 4 * 4) * (3 * 3 * 3)  # 2 B (outputs of one sample) (inputs of each)
    assert count_flops(lambda: layer(x)) == forward
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * forward


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"attn_mask": torch.ones(2, 1, 6, 6) > 0}],
    ids=str,
)
def test_flops_of_attention(options):
    q, k, v = (torch.ones(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 4 * (6 * 6 * 8)  # 2 B heads S S width
    attend = functools.partial(scaled_dot_product_attention, q, k, v, **options)
    with torch.no_grad():
        assert count_flops(attend) == 2 * product
    assert count_flops(lambda: attend().sum().backward()) == (2 + 5) * product


def test_flops_of_a_transformer_by_hand():
    batch, length, width, blocks = 2, 6, 16, 2
    model = build_model(
        "language",
        input_shape=(2, length),
        num_classes=3,
        seed=0,
        options={"source": config_json("gpt2"), "train": "all"},
    )
    client = split_at(model, str(blocks)).client_model.eval()
    tokens = torch.ones(batch, 2, length, dtype=torch.int64)
    weights = 2 * length * 12 * width**2  # queries, keys, values and outputs 4, both layers above 8
    attention = 4 * length**2 * width
    with torch.no_grad():
        assert count_flops(lambda: client(tokens)) == batch * blocks * (weights + attention)


def test_every_attention_kernel_of_the_cpu_has_a_formula():
    kernels = [
        name
        for name in dir(torch.ops.aten)
        if "dot_product" in name
        and torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CPU")
    ]
    assert len(kernels) > 1
    assert not [n for n in kernels if getattr(torch.ops.aten, n) not in FLOP_FORMULAS]


def test_operations_without_a_formula_are_named(caplog):
    layer = nn.LSTM(3, 4)
    with torch.no_grad():
        count_flops(lambda: layer(torch.ones(2, 1, 3)))
    assert "mkldnn_rnn_layer" in caplog.text


def test_elementwise_operations_are_not_counted():
    x = torch.ones(10, 10)
    assert count_flops(lambda: (x * 2 + 1).relu().sum()) == 0


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_a_probe_costs_its_forward_passes(estimator):
    config = ZerothOrderConfig(num_perturbations=5, estimator=estimator)
    layer, x = linear(8, 16), torch.ones(4, 8)
    assert count_flops(lambda: probe_once(layer, x, config)) == config.num_forwards * FORWARD


def probe_once(model, x, config):
    parameters = trainable_parameters(model)
    spec = ParameterSpec.of(parameters)
    vector = spec.flatten(parameters)
    smashed = (len(x), [m for m in model.modules() if isinstance(m, nn.Linear)][-1].out_features)
    objective = SurrogateObjective(model, x, torch.ones(smashed))
    seeds = perturbation_seeds(0, config.num_perturbations, round=1)
    return probe(objective, spec, vector, seeds, config)


# --- memory -------------------------------------------------------------------------------------

KB = 1000


def test_peak_of_hand_countable_steps():
    x = torch.ones(1_000)  # 4 KB

    def chain():
        y = x * 2  # x, y
        y = y + 1  # x, the old y, the new y
        return y + 1  # x, y, z: the older one is gone

    def keep():
        a = x * 2
        b = a + 1
        return a + b  # x, a, b, c

    def in_place():
        return x.mul_(1.0).add_(0.0)

    def views():
        return x.view(10, 100)[2:5].t()

    def wider():
        return x.double()

    assert peak_tensor_bytes(chain) == 12 * KB
    assert peak_tensor_bytes(keep) == 16 * KB
    assert peak_tensor_bytes(in_place) == 4 * KB
    assert peak_tensor_bytes(views) == 4 * KB
    assert peak_tensor_bytes(wider) == 4 * KB + 8 * KB
    assert peak_tensor_bytes(lambda: None) == 0


def test_what_was_freed_is_not_counted_and_the_peak_is_kept():
    x = torch.ones(1_000)

    def step():
        large = x.repeat(50)  # 4 + 200 KB
        del large
        return x + 1

    assert peak_tensor_bytes(step) == 204 * KB


def deep(depth):
    return nn.Sequential(*(linear(100, 100, bias=False) for _ in range(depth)))


DEPTH = 6
WEIGHTS = DEPTH * 40 * KB
ACTIVATION = 20 * KB  # 50 samples of 100 floats


def test_inference_holds_two_activations_and_training_holds_all():
    model, x = deep(DEPTH), torch.ones(50, 100)
    parameters = trainable_parameters(model)
    inference = peak_tensor_bytes(lambda: forward_only(model, parameters, x))
    forward_with_graph = peak_tensor_bytes(lambda: model(x))
    training = peak_tensor_bytes(lambda: model(x).sum().backward())
    assert inference == WEIGHTS + 3 * ACTIVATION  # the batch, a layer's input, its output
    assert forward_with_graph == WEIGHTS + (1 + DEPTH) * ACTIVATION
    assert training > forward_with_graph > inference


def test_a_zeroth_order_step_peaks_at_inference_and_a_perturbed_copy():
    x = torch.ones(50, 100)

    def peak(depth, num_perturbations):
        model = deep(depth)
        config = ZerothOrderConfig(num_perturbations=num_perturbations)
        with unshared_directions():  # as on a device
            return peak_tensor_bytes(lambda: probe_once(model, x, config))

    # The model, theta, u and theta + mu u; x, lambda, a layer's input and its output; 8 bytes for
    # each scalar v.
    assert peak(DEPTH, 2) <= 4 * WEIGHTS + 4 * ACTIVATION + 2 * 8
    assert peak(DEPTH, 9) == peak(DEPTH, 2)  # P does not matter
    # Nor do activations add up with depth, as a graph's do.
    assert peak(2 * DEPTH, 2) - peak(DEPTH, 2) <= 4 * WEIGHTS
    grown = peak_tensor_bytes(lambda: deep(2 * DEPTH)(x)) - peak_tensor_bytes(
        lambda: deep(DEPTH)(x)
    )
    assert grown == WEIGHTS + DEPTH * ACTIVATION


def test_copies_are_left_out_and_what_they_are_made_of_is_not():
    x, stored = torch.ones(1_000), torch.ones(500)

    def copies():
        with allocated_as(None):
            y = x.clone()  # x counts, y does not
        leave_out([stored])
        return stored + 1, y + 1  # 2 KB and 4 KB

    assert peak_tensor_bytes(copies) == 4 * KB + 2 * KB + 4 * KB

    def sent_on_its_way():
        y = x * 2
        leave_out([y])  # it was alive
        return x + 1

    assert peak_tensor_bytes(sent_on_its_way) == 8 * KB


def test_a_repeated_pass_is_counted_apart():
    layer, x = linear(8, 16), torch.ones(4, 8)

    def step():
        layer(x)
        with repeated_pass():
            layer(x)

    costs = measure_step(ClientStep(run=step))
    assert (costs.flops, costs.repeated_flops) == (FORWARD, FORWARD)
    with repeated_pass():  # nobody watches
        layer(x)


class Statistics:
    """An allocator with 100 bytes in use that grows to 160 during a step."""

    def __init__(self):
        self.calls, self.peak = [], 100

    def __getattr__(self, name):
        def call(device):
            self.calls.append(name)
            return {"memory_allocated": 100, "max_memory_allocated": self.peak}.get(name)

        return call


def test_the_allocators_peak_adds_what_is_kept_to_what_grew():
    allocator, weight = Statistics(), nn.Parameter(torch.ones(10))
    optimizer = torch.optim.SGD([weight], momentum=0.9)

    def run():
        allocator.peak = 160

    step = ClientStep(run=run, weights=[weight, weight[:5]], optimizers=[optimizer, None])
    assert allocator_peak(step, torch.device("cpu"), allocator) == 40 + 40 + 60
    order = ["reset_peak_memory_stats", "memory_allocated", "synchronize", "max_memory_allocated"]
    assert allocator.calls == ["synchronize", *order]
