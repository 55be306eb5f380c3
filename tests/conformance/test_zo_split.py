"""MU-SplitFed and ZO-SFL: every option against the reference, faults, no derivative anywhere."""

import pytest
import torch

from leansplit.clients.app import split_client_app
from leansplit.errors import UserError
from leansplit.models import split_at
from leansplit.server_app.methods import METHODS
from leansplit.strategies import Deployment
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.tasks import Examples
from leansplit.zeroth_order import ZerothOrderConfig
from tests.no_backward import NoBackward

BOTH = ["mu-splitfed", "zo-sfl"]
OPTIONS = [
    *(
        ("mu-splitfed", {"tau": tau, "probe.num_perturbations": p})
        for tau in (1, 2, 3)
        for p in (1, 2)
    ),
    ("mu-splitfed", {"global_lr": 1.0, "probe.direction": "gaussian"}),
    ("zo-sfl", {"probe.num_perturbations": 1, "local_steps": 3}),
    ("zo-sfl", {"probe.direction": "sphere", "local_steps": 1}),
    *((method, {"probe.direction": "unit_sphere"}) for method in BOTH),
    *((method, {"server_mode": "sequential"}) for method in BOTH),
    *((method, {"probe.estimator": "forward"}) for method in BOTH),
]


@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
def test_every_option_equals_the_reference(
    method, options, configure, run_in_process, reference_checksum
):
    config = configure(method, rounds=5, **options)
    outcome = run_in_process(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.final_model_checksum == reference_checksum(config)
    assert outcome.num_exchanges == (config.options["local_steps"] + 1) * config.rounds + 1


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("method", BOTH)
def test_one_server_model_keeps_its_moments(
    method, optimizer, configure, run_in_process, reference_checksum
):
    keys = {"client.lifetime": "run", "server.lifetime": "run", "server_mode": "sequential"}
    config = configure(method, optimizer, rounds=5, **keys)
    assert run_in_process(config).final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("server_mode", ["averaged", "sequential"])
@pytest.mark.parametrize("method", BOTH)
def test_a_round_that_nobody_finishes_leaves_both_halves_alone(
    method, server_mode, configure, run_in_process
):
    def fault(message, partition_id):
        is_step = message.metadata.message_type == "train.zo_split_step"
        return "asleep" if is_step and message.metadata.group_id == "2" else None

    one_round = run_in_process(configure(method, rounds=1, server_mode=server_mode))
    two_rounds = run_in_process(configure(method, rounds=2, server_mode=server_mode), fault)
    assert two_rounds.events["empty_rounds"] == 1
    assert two_rounds.final_model_checksum == one_round.final_model_checksum


@pytest.mark.parametrize("method", BOTH)
def test_a_client_that_fails_within_its_round_is_left_out_of_both_averages(
    method, configure, run_in_process
):
    """Its replica trained on its first batch, but the average is of the others alone."""
    cohort = run_in_process(configure(method, rounds=1, clients=3)).num_samples
    assert set(cohort) == {0, 1, 2}

    def without(action):
        def fault(message, partition_id):
            is_hit = message.metadata.message_type == f"train.{action}" and partition_id == 1
            return "asleep" if is_hit else None

        return run_in_process(configure(method, rounds=1, clients=3), fault)

    early, late = without("zo_split_forward"), without("zo_split_step")
    assert early.final_model_checksum == late.final_model_checksum
    assert late.samples_seen > early.samples_seen
    assert late.events == {"dropped_clients": 1, "dropped_node": 1}


def build():
    """Both halves hold a layer whose backward raises, and the server drops out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (
            *(torch.nn.Linear(4, 6), NoBackward(in_grad_mode=False), torch.nn.Tanh()),
            *(torch.nn.Dropout(0.3), NoBackward(in_grad_mode=False), torch.nn.Linear(6, 3)),
        )
        return split_at(torch.nn.Sequential(*layers), "2")


def data(client_id):
    generator = torch.Generator().manual_seed(client_id)
    return Examples(
        torch.randn(10, 4, generator=generator), torch.randint(0, 3, (10,), generator=generator)
    )


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("method", BOTH)
def test_neither_side_differentiates_and_dropout_has_a_seed(method, estimator):
    spec = METHODS[method]
    config = spec.config_type(
        cohort_size=2,
        local_steps=2,
        zeroth_order=ZerothOrderConfig(num_perturbations=2, estimator=estimator),
    )
    loss = torch.nn.functional.cross_entropy
    model = build()
    start = {name: value.clone() for name, value in model.full_state_dict().items()}
    strategy = spec.strategy(model, loss, config, deployment=Deployment(num_clients=4))
    strategy.start(
        grid=InProcessGrid(split_client_app(build, data), 4),
        initial_arrays=strategy.initial_arrays(),
        num_rounds=3,
    )
    assert strategy.rounds_completed == 3 and strategy.events == {}
    assert all(parameter.grad is None for parameter in model.full_model.parameters())
    expected = build()
    spec.reference(expected, loss, [data(m) for m in range(4)], config, 3)
    for name, value in expected.full_state_dict().items():
        assert torch.equal(model.full_state_dict()[name], value), name
        assert not torch.equal(start[name], value), name


@pytest.mark.parametrize("method", BOTH)
def test_an_evaluation_that_leaves_layers_in_its_mode_changes_nothing(method):
    """As a user's own ``evaluate_fn`` may do: layers of the whole model are those of its halves."""
    spec = METHODS[method]
    config = spec.config_type(cohort_size=2, local_steps=2)
    loss = torch.nn.functional.cross_entropy
    model, expected = build(), build()
    strategy = spec.strategy(model, loss, config, deployment=Deployment(num_clients=4))

    def evaluate(round, arrays):
        model.full_model.eval()

    strategy.start(
        grid=InProcessGrid(split_client_app(build, data), 4),
        initial_arrays=strategy.initial_arrays(),
        num_rounds=2,
        evaluate_fn=evaluate,
    )
    spec.reference(expected, loss, [data(m) for m in range(4)], config, 2)
    for name, value in expected.full_state_dict().items():
        assert torch.equal(model.full_state_dict()[name], value), name


@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        ("mu-splitfed", "tau", 0, "tau must be at least 1"),
        ("mu-splitfed", "global_lr", 0.0, "global_lr must be a finite number above 0"),
        ("mu-splitfed", "local_steps", 0, "local_steps must be at least 1"),
        ("zo-sfl", "server_mode", "summed", "server_mode"),
        ("zo-sfl", "tau", 2, "zo-sfl does not use 'tau'"),
    ],
)
def test_bad_input_is_refused(method, key, value, message, configure):
    with pytest.raises(UserError, match=message):
        configure(method, **{key: value})


def test_defaults_are_the_papers():
    mu, zo = METHODS["mu-splitfed"], METHODS["zo-sfl"]
    probe = mu.default("zeroth_order")
    assert (probe.num_perturbations, probe.perturbation_scale) == (1, 5e-3)
    assert (probe.estimator, probe.direction) == ("central", "sphere")
    assert mu.default("client_optimizer").lr == 0.005
    assert mu.default("server_optimizer").lr == 0.01
    assert (mu.default("global_lr"), mu.default("tau")) == (0.3, 2)
    probe = zo.default("zeroth_order")
    assert (probe.num_perturbations, probe.perturbation_scale) == (1, 1e-3)
    assert (probe.estimator, probe.direction) == ("central", "gaussian")
    assert zo.default("client_optimizer").name == zo.default("server_optimizer").name == "adamw"
