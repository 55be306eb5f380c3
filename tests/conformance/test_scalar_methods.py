"""HOSL, DeComFL and FedZO: every option against the reference loop, bit for bit."""

import dataclasses

import pytest

from leansplit.clients import handlers
from leansplit.clients.app import task_client_app
from leansplit.federated import LIFETIMES
from leansplit.noise import DIRECTIONS
from leansplit.server_app.execution import execute
from leansplit.server_app.methods import METHODS
from leansplit.strategies.in_process_grid import InProcessGrid
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


@pytest.mark.parametrize(
    ("method", "action", "shorten"),
    [
        ("ho-sfl", "ho_sfl_probe", lambda reply: {"scalars": reply.scalars[:1]}),
        ("decomfl", "decomfl_probe", lambda reply: {"scalars": reply.scalars[:1, :1]}),
        ("hosl", "hosl_forward", lambda reply: {"plus": reply.plus[:1]}),
    ],
)
def test_too_few_scalars_are_never_spread_over_all_directions(
    method, action, shorten, configure, run_in_process, monkeypatch
):
    """One number for P directions would be broadcast into a wrong mean without a word."""
    record_type, original = handlers.registered_handlers()[action]

    def changed(session, request):
        reply = original(session, request)
        return dataclasses.replace(reply, **shorten(reply)) if session.client_id == 2 else reply

    monkeypatch.setitem(handlers._handlers, action, (record_type, changed))
    config = configure(method, "sgd", cohort=8, rounds=2)
    outcome = execute(config, InProcessGrid(task_client_app(), config.clients))
    assert outcome.status == "failed"
    assert "in round 1 from client 2" in outcome.error
