"""Passes that the accounts give a client are those that its layers see."""

from dataclasses import dataclass, replace

import pytest
import torch

from leansplit.clients.app import split_client_app
from leansplit.models import split_at
from leansplit.server_app.methods import METHODS
from leansplit.strategies import Deployment
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples
from leansplit.zeroth_order import ESTIMATORS

LOSS = torch.nn.functional.cross_entropy
NUM_PROBES = 3
# Messages hold no graph, so these run a batch forward again when lambda arrives. A device would
# not, and the accounts do not count it (docs/methods/sflv1.md).
REPEATED = {"sflv1": 1, "sflv2": 1}


@dataclass
class Tally:
    """Samples that went through a layer, forward and backward."""

    forwards: int = 0
    backwards: int = 0

    def __deepcopy__(self, memo):
        return self


class _Count(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tally):
        ctx.tally = tally
        tally.forwards += len(x)
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        ctx.tally.backwards += len(gradient)
        return gradient, None


class Counting(torch.nn.Module):
    def __init__(self, tally):
        super().__init__()
        self.tally = tally

    def forward(self, x):
        return _Count.apply(x, self.tally)


def build(below, above):
    """A layer that counts on either side of the cut, where there are gradients to count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 6), Counting(below), torch.nn.Tanh(), torch.nn.Linear(6, 5)]
        return split_at(
            torch.nn.Sequential(*layers, Counting(above), torch.nn.ReLU(), torch.nn.Linear(5, 3)),
            "2",
        )


def data(client_id):
    generator, n = torch.Generator().manual_seed(client_id), 6 + client_id  # some below a batch
    return Examples(
        torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    )


def config_of(method, estimator=None, **options):
    spec = METHODS[method]
    config = spec.config_type(cohort_size=2, **options)
    if "local_steps" in spec.fields:
        config = replace(config, local_steps=2)
    if "upload_period" in spec.fields:
        config = replace(config, upload_period=2)
    if estimator:
        probes = replace(config.zeroth_order, num_perturbations=NUM_PROBES, estimator=estimator)
        config = replace(config, zeroth_order=probes)
    return config


CASES = [
    *((name, None, {}) for name, spec in METHODS.items() if "zeroth_order" not in spec.fields),
    *(
        (name, estimator, {})
        for name, spec in METHODS.items()
        if "zeroth_order" in spec.fields
        for estimator in ESTIMATORS
    ),
    *(("ho-fl", estimator, {"boundaries": ("all",)}) for estimator in ESTIMATORS),
    *(("ho-fl", estimator, {"boundaries": ("cut",)}) for estimator in ESTIMATORS),
    ("ho-sfl", "central", {"probe_ahead": True}),
    ("heron-sfl", "central", {"frozen_client": True}),
    ("cse-fsl", None, {"frozen_client": True}),
]


@pytest.mark.parametrize(("method", "estimator", "options"), CASES, ids=str)
def test_a_clients_passes_are_those_of_the_accounts(method, estimator, options):
    if method == "ho-fl" and not options:
        options = {"boundaries": ("none",)}
    spec, config = METHODS[method], config_of(method, estimator, **options)
    below, above = Tally(), Tally()
    client_app = split_client_app(lambda: build(below, above), data, LOSS)
    is_set_up = []

    def after_the_set_up(message, partition_id):
        if message.metadata.message_type.startswith("train") and not is_set_up:
            is_set_up.append(True)
            below.__init__()
            above.__init__()

    deployment = Deployment(num_clients=4)
    strategy = spec.strategy(build(Tally(), Tally()), LOSS, config, deployment=deployment)
    grid = InProcessGrid(client_app, 4, fault=after_the_set_up)
    strategy.start(grid=grid, initial_arrays=strategy.initial_arrays(), num_rounds=3)
    assert strategy.events == {}

    samples = strategy.samples_forwarded
    assert samples > 3 * 2 * 6
    # A pass through one segment of a model counts as a pass (docs/methods/ho-fl.md).
    forwards = max(below.forwards, above.forwards) - REPEATED.get(method, 0) * samples
    backwards = max(below.backwards, above.backwards)
    assert (forwards, backwards) == tuple(passes * samples for passes in spec.client_passes(config))
