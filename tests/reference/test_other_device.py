"""Every plain loop on a model and data that live on another device than the CPU.

A loop that draws noise, or makes an empty gradient, where the model is not fails; one that runs
must end in the same bits.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leansplit.federated import (
    AlignmentConfig,
    HOFLConfig,
    OptimizerConfig,
    Replica,
    TrainedVector,
    Update,
)
from leansplit.first_order import align_, server_step
from leansplit.hybrid_order import HybridTraining, replay, segments_at
from leansplit.models import split_at
from leansplit.noise import DIRECTIONS
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.server_app.config import run_config
from leansplit.server_app.methods import METHODS
from leansplit.server_app.plain_execution import execute_plain
from leansplit.tasks import Examples
from leansplit.zeroth_order import (
    LocalLossObjective,
    LossObjective,
    ServerObjective,
    SurrogateObjective,
    ZerothOrderConfig,
    estimate,
    perturbed,
    probe,
    probe_smashed_data,
    unshared_directions,
)
from tests.pretended_device import CPU, ELSEWHERE, PretendedDevice


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        below = [nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.ReLU(), nn.Dropout(0.2)]
        above = [nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3)]
        return split_at(nn.Sequential(*below, *above), "3")


def clients():
    generator = torch.Generator().manual_seed(1)
    return [
        Examples(
            torch.randn(n, 1, 4, 4, generator=generator),
            torch.randint(0, 3, (n,), generator=generator),
        )
        for n in (30, 12, 20)
    ]


def moved(data):
    return [Examples(each.inputs.to(ELSEWHERE), each.labels.to(ELSEWHERE)) for each in data]


def test_the_pretended_device_is_as_strict_as_a_real_one():
    here = torch.ones(3)
    with PretendedDevice():
        there = torch.arange(3.0, device=ELSEWHERE)
        assert there.device == ELSEWHERE and float(there.sum()) == 3
        assert torch.equal((there * 2 + 1).cpu(), torch.tensor([1.0, 3.0, 5.0]))
        assert torch.equal(there[torch.tensor([2, 0])].cpu(), torch.tensor([2.0, 0.0]))
        there[1:] += there.new_ones(2) * torch.tensor(4.0)  # a number may come from anywhere
        assert torch.equal(there.cpu(), torch.tensor([0.0, 5.0, 6.0]))
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here.add_(there),
            lambda: torch.stack([there.sum(), torch.tensor(1.0)]),
            lambda: here[there.long() > 1],
        ):
            with pytest.raises(RuntimeError, match="another device"):
                mixed()
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()


OPTIMIZERS = {
    "adamw": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.01),
    "momentum": OptimizerConfig(lr=0.05, momentum=0.9, lifetime="round"),
}


def settings(method, optimizer, **changes):
    """Small settings that reach every branch a method has."""
    spec = METHODS[method]
    wanted = {
        "cohort_size": 2,
        "batch_size": 5,
        "root_seed": 3,
        "local_steps": 2,
        "client_optimizer": optimizer,
        "server_optimizer": optimizer,
        "zeroth_order": ZerothOrderConfig(num_perturbations=2),
        "boundaries": ("none", "cut", "all"),
        "alignment": AlignmentConfig(period=1, epochs=2, batch_size=4),
    }
    fields = spec.fields.keys() | {"cohort_size"}
    return spec.config_type(**{k: v for k, v in (wanted | changes).items() if k in fields})


def assert_same_end(method, config):
    """Run the plain loop here and elsewhere and compare the model and what the loop returns."""
    spec = METHODS[method]
    here, there, data = build(), build(), clients()
    expected = spec.reference(here, F.cross_entropy, data, config, 2)
    with PretendedDevice(), unshared_directions():
        there.full_model.to(ELSEWHERE)
        found = spec.reference(there, F.cross_entropy, moved(data), config, 2)
        for name, value in there.full_state_dict().items():
            assert value.device == ELSEWHERE, name
            assert torch.equal(value.cpu(), here.full_state_dict()[name]), name
        for name, value in tensors_of(expected).items():
            assert torch.equal(tensors_of(found)[name].cpu(), value), name


def tensors_of(returned):
    """Return what a loop returned as named tensors."""
    if not returned:
        return {}
    if all(isinstance(value, torch.Tensor) for value in returned.values()):
        return returned
    return {
        f"{m}.{name}": value
        for m, module in returned.items()
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_plain_loop_ends_in_the_same_bits(method):
    """One optimizer each; the parts that take either are held to both below."""
    optimizers = list(OPTIMIZERS.values())
    optimizer = optimizers[list(METHODS).index(method) % len(optimizers)]
    assert_same_end(method, settings(method, optimizer))


VARIANTS = [
    ("ho-sfl", {"paper_code_scaling": True}),
    ("sflv1", {"client_backward": "recompute"}),
    ("sflv2", {"client_backward": "recompute", "client_order": "sequential"}),
    ("cse-fsl", {"server_mode": "averaged", "frozen_client": True}),
    ("heron-sfl", {"server_mode": "summed", "frozen_client": True}),
    ("fsl-sage", {"server_mode": "averaged"}),
    ("mu-splitfed", {"server_mode": "sequential"}),
    ("zo-sfl", {"server_mode": "sequential"}),
]


@pytest.mark.parametrize(("method", "changes"), VARIANTS, ids=[method for method, _ in VARIANTS])
def test_options_do_too(method, changes):
    central = ZerothOrderConfig(num_perturbations=2, estimator="central", direction="unit_sphere")
    assert_same_end(method, settings(method, OPTIMIZERS["adamw"], zeroth_order=central, **changes))


# --- What strategies and clients use beside the loops -------------------------------------------

CENTRAL = ZerothOrderConfig(num_perturbations=2, estimator="central")
ADAMW = OPTIMIZERS["adamw"]


def estimates(model, x, y):
    found = {}
    parameters = trainable_parameters(model.client_model)
    spec = ParameterSpec.of(parameters)
    theta = spec.flatten(parameters)
    z = model.client_model.eval()(x).detach()
    for direction in DIRECTIONS:
        zo = ZerothOrderConfig(num_perturbations=2, direction=direction)
        objective = SurrogateObjective(model.client_model, x, torch.ones_like(z))
        v = probe(objective, spec, theta, (4, 5), zo, anchor=objective.value_of(z))
        found[f"{direction}.v"] = v
        found[f"{direction}.g"] = estimate(spec, (4, 5), v, zo, device=theta.device)
        found[f"{direction}.moved"] = perturbed(theta, 1e-2, 4, zo)
    return found


def losses(model, x, y):
    full, client = model.full_model.eval(), model.client_model.eval()
    whole = ParameterSpec.of(trainable_parameters(full))
    theta = whole.flatten(trainable_parameters(full))
    own = LossObjective(full, F.cross_entropy, x, y)
    local = LocalLossObjective(lambda_of(full), F.cross_entropy, x, y)
    v = {"own": probe(own, whole, theta, (1, 2), CENTRAL)}
    names = {f"full.{name}": value for name, value in whole.views(theta).items()}
    v["local"] = torch.tensor(local.evaluate(names))
    spec = ParameterSpec.of(trainable_parameters(client))
    theta_c = spec.flatten(trainable_parameters(client))
    probed = probe_smashed_data(client, spec, theta_c, x, (1, 2), CENTRAL, with_anchor=True)
    server = ServerObjective(model.server_model.train(), F.cross_entropy, y, dropout_seed=1)
    theta_s = trainable_parameters(model.server_model)
    for p, pair in enumerate(probed.pairs):
        v[f"server.{p}"] = torch.stack([server(theta_s, z) for z in pair])
    return v


def lambda_of(full):
    class WithInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.full = full

        def forward(self, inputs):
            return inputs, self.full(inputs)

    return WithInputs()


def replicas(model, x, y):
    weights = trainable_parameters(model.client_model)
    replica = Replica(weights, ADAMW, CENTRAL)
    replica.apply_(Update(1, (7, 8), (0.5, -0.25)))
    again = Replica.from_state(replica.state(), ADAMW, CENTRAL, version=1)
    again.catch_up_([Update(2, (9, 10), (1.0, 2.0))])
    trained = TrainedVector(weights, ADAMW)
    trained.step_(torch.ones_like(trained.vector))
    return {"replica": again.vector, "vector": trained.vector} | again.moments()


def steps(model, x, y):
    found = {}
    z = model.client_model.eval()(x).detach()
    optimizer = torch.optim.SGD(model.server_model.parameters(), lr=0.1)
    step = server_step(
        model.server_model, F.cross_entropy, optimizer, [z[:3], z[3:]], [y[:3], y[3:]], [0.6, 0.4],
        dropout_seed=3,
    )  # fmt: skip
    found |= {f"lambda.{i}": value for i, value in enumerate(step.smashed_gradients)}
    head = build().server_model.to(z.device)
    align_(
        head, model.server_model, F.cross_entropy, torch.optim.SGD(head.parameters(), lr=0.1), z, y,
        epochs=2, batch_size=2, root_seed=0, round=1, client_id=0,
    )  # fmt: skip
    return found | trainable_parameters(head)


def hybrid(model, x, y):
    config = HOFLConfig(cohort_size=1, zeroth_order=CENTRAL, client_optimizer=ADAMW)
    segments = segments_at(model, "cut")
    start = {name: value.clone() for name, value in segments.zeroth_parameters.items()}
    training = HybridTraining(segments, F.cross_entropy, config)
    _, v = training.step(x, y, (1, 2), dropout_seed=3)
    training.finish()
    seeds = torch.tensor([[1, 2]], dtype=torch.uint32)
    rebuilt = replay(start, seeds, v[None], config, {}).parameters
    return {"v": v} | rebuilt | segments.first_parameters


@pytest.mark.parametrize("part", [estimates, losses, replicas, steps, hybrid])
def test_the_parts_of_strategies_and_clients_do_too(part):
    here, there, [data, *_] = build(), build(), clients()
    expected = part(here, data.inputs[:5], data.labels[:5])
    with PretendedDevice(), unshared_directions():
        there.full_model.to(ELSEWHERE)
        found = part(there, data.inputs[:5].to(ELSEWHERE), data.labels[:5].to(ELSEWHERE))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name].cpu(), value), name


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # not so here
@pytest.mark.parametrize("method", ["heron-sfl", "ho-sfl", "sflv1"])
def test_a_whole_run_by_the_plain_loop_does_too(method):
    """Data and model are moved, evaluated where they are, and come back with the results."""
    settings = {
        "task_options.max_train": 60,
        "task_options.max_test": 20,
        "clients": 4,
        "cohort": 2,
        "rounds": 2,
    }
    config = run_config(method, settings)
    here = execute_plain(config, device=CPU)
    with PretendedDevice(), unshared_directions():
        there = execute_plain(config, device=ELSEWHERE)
    assert here.status == there.status == "completed"
    assert there.final_model_checksum == here.final_model_checksum
    assert there.local_accuracy == here.local_accuracy
    columns = ("round", "accuracy", "loss", "uplink_bytes")
    assert [[row[c] for c in columns] for row in there.rounds] == [
        [row[c] for c in columns] for row in here.rounds
    ]
    assert there.device == str(ELSEWHERE)
