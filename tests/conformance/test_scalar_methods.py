"""HOSL, DeComFL and FedZO: every option against the reference loop, bit for bit."""

import pytest

from leansplit.federated import LIFETIMES
from leansplit.noise import DIRECTIONS
from leansplit.server_app.methods import METHODS
from leansplit.zeroth_order import ESTIMATORS

OURS = ["hosl", "decomfl", "fedzo"]
STEPPING = ["decomfl", "fedzo"]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("method", OURS)
def test_equals_its_reference_with_every_estimator(
    method, estimator, direction, configure, run_in_process, reference_checksum
):
    probes = {"probe.direction": direction, "probe.estimator": estimator}
    config = configure(method, rounds=6, **probes)
    outcome = run_in_process(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("lifetime", LIFETIMES)
@pytest.mark.parametrize("method", STEPPING)
def test_equals_its_reference_with_any_number_of_local_steps(
    method, lifetime, local_steps, configure, run_in_process, reference_checksum
):
    options = {"local_steps": local_steps, "client.lifetime": lifetime}
    config = configure(method, "adamw", rounds=6, **options)
    assert run_in_process(config).final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("hosl", {"num_perturbations": 10, "estimator": "central", "direction": "gaussian"}),
        ("decomfl", {"num_perturbations": 5, "estimator": "forward", "direction": "gaussian"}),
        ("fedzo", {"num_perturbations": 20, "estimator": "forward", "direction": "sphere"}),
    ],
)
def test_defaults_are_the_papers(method, expected):
    config = METHODS[method].config_type(cohort_size=1)
    assert expected.items() <= vars(config.zeroth_order).items()
    assert config.zeroth_order.perturbation_scale == 1e-3
    assert (config.client_optimizer.name, config.client_optimizer.momentum) == ("sgd", 0)


@pytest.mark.parametrize("method", OURS)
def test_round_trips(method, configure, run_in_process):
    """One exchange a round, the set-up, and the final synchronisation where there are replicas."""
    outcome = run_in_process(configure(method, rounds=4))
    assert outcome.num_exchanges == 4 + (1 if method == "fedzo" else 2)
