"""Every method, held to the same promises: one row of METHODS, one pass through this suite."""

import math

import pytest
import torch

from leansplit.errors import RunFailedError
from leansplit.federated import LIFETIMES
from leansplit.models import split_at
from leansplit.server_app.methods import METHODS, is_used
from tests.no_backward import NoBackward
from tests.whole_grid import WHOLE_GRID

ALL = list(METHODS)
PACKED = [name for name, spec in METHODS.items() if not spec.one_client_per_node]
FORWARD_ONLY = [name for name, spec in METHODS.items() if spec.client_order in {"zeroth", "none"}]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("method", ALL)
def test_equals_its_reference_loop_bit_for_bit(
    method, optimizer, configure, run_in_process, reference_checksum
):
    config = configure(method, optimizer, **({"rounds": 20} if WHOLE_GRID else {}))
    outcome = run_in_process(config)
    assert outcome.status == "completed"
    assert outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("direction", ["rademacher", "sphere", "unit_sphere"])
@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_ho_sfl_equals_its_reference_with_every_estimator(
    direction, estimator, configure, run_in_process, reference_checksum
):
    config = configure(
        "ho-sfl",
        micro_batch=3 if direction == "sphere" else 0,
        **{"probe.direction": direction, "probe.estimator": estimator, "paper_code_scaling": True},
    )
    assert run_in_process(config).final_model_checksum == reference_checksum(config)


@pytest.mark.parametrize("lifetime", LIFETIMES)
@pytest.mark.parametrize("method", ALL)
def test_equals_its_reference_with_every_optimizer_lifetime(
    method, lifetime, configure, run_in_process, reference_checksum, check_ledger, expected
):
    """With clients that hold less than a batch, so that shares and sizes of uploads differ."""
    keys = ("client.lifetime", "server.lifetime")
    lifetimes = {key: lifetime for key in keys if is_used(method, key)}
    config = configure(method, "adamw", batch_size=24, **lifetimes)
    outcome = run_in_process(config)
    batches = {
        frozenset(min(config.batch_size, outcome.num_samples[m]) for m in cohort)
        for cohort in expected(config).attendance
    }
    assert any(len(sizes) > 1 for sizes in batches)
    assert outcome.final_model_checksum == reference_checksum(config)
    check_ledger(config, outcome)


def test_sflv2_equals_its_reference_client_by_client(configure, run_in_process, reference_checksum):
    interleaved = configure("sflv2")
    sequential = configure("sflv2", client_order="sequential")
    outcome = run_in_process(sequential)
    assert outcome.final_model_checksum == reference_checksum(sequential)
    assert outcome.final_model_checksum != run_in_process(interleaved).final_model_checksum


@pytest.mark.parametrize("method", ALL)
def test_same_run_twice_gives_the_same_bytes(method, configure, run_in_process):
    config = configure(method)
    first, second = run_in_process(config), run_in_process(config, afresh=True)
    assert first.final_model_checksum == second.final_model_checksum
    assert list(first.ledger) == list(second.ledger)
    drop = {"wall_time_s"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in first.rounds] == [
        {k: v for k, v in row.items() if k not in drop} for row in second.rounds
    ]


@pytest.mark.parametrize("method", ALL)
def test_another_seed_gives_another_run(method, configure, run_in_process):
    first = run_in_process(configure(method))
    second = run_in_process(configure(method, seed=1))
    assert first.final_model_checksum != second.final_model_checksum


@pytest.mark.parametrize("method", PACKED)
def test_packing_and_storage_change_nothing(method, configure, run_in_process):
    plain = run_in_process(configure(method))
    packed = run_in_process(configure(method, clients_per_node=3, replica_storage="worker"))
    assert packed.final_model_checksum == plain.final_model_checksum
    assert packed.rounds[-1]["accuracy"] == plain.rounds[-1]["accuracy"]
    assert list(packed.ledger) == list(plain.ledger)


@pytest.mark.parametrize("method", ALL)
def test_ledger_equals_the_closed_formulas(method, configure, run_in_process, check_ledger):
    config = configure(method)
    outcome = run_in_process(config)
    check_ledger(config, outcome)
    assert outcome.ledger.total_bytes(kind="envelope") > 0


@pytest.mark.parametrize("method", ALL)
def test_samples_are_those_that_the_cohorts_hold(method, configure, run_in_process, expected):
    config = configure(method)
    outcome = run_in_process(config)
    steps = config.options.get("local_steps", 1)
    assert outcome.samples_seen == sum(
        steps * min(config.batch_size, outcome.num_samples[m])
        for cohort in expected(config).attendance
        for m in cohort
    )


@pytest.mark.parametrize("method", ALL)
def test_a_failing_client_does_not_poison_the_run(method, configure, run_in_process, expected):
    def fault(message, partition_id):
        is_training = message.metadata.message_type.startswith("train")
        return "its battery is flat" if is_training and partition_id == 2 else None

    config = configure(method, cohort=5)
    outcome = run_in_process(config, fault)
    chosen = sum(2 in cohort for cohort in expected(config).attendance)
    assert outcome.status == "completed"
    assert outcome.events["dropped_clients"] == chosen > 0
    assert outcome.rounds_completed == config.rounds
    assert math.isfinite(outcome.rounds[-1]["loss"])


@pytest.mark.parametrize("method", ALL)
def test_a_run_that_nobody_answers_fails_with_the_reason(method, configure, run_in_process):
    def fault(message, partition_id):
        is_training = message.metadata.message_type.startswith("train")
        return "the power is out" if is_training else None

    outcome = run_in_process(configure(method), fault)
    assert outcome.status == "failed"
    assert "the power is out" in outcome.error
    assert "3 rounds in a row" in outcome.error
    assert outcome.events["dropped_node"] == outcome.events["dropped_clients"]


@pytest.mark.parametrize("method", ALL)
def test_non_finite_values_end_the_run_and_name_the_round(method, configure, run_in_process):
    rates = {key: 3e38 for key in ("client.lr", "server.lr") if is_used(method, key)}
    outcome = run_in_process(configure(method, "sgd", **rates))
    assert outcome.status == "failed"
    assert "non-finite" in outcome.error
    assert " round " in outcome.error


@pytest.mark.parametrize("method", FORWARD_ONLY)
def test_client_step_never_differentiates(method, configure, monkeypatch):
    """The whole message path of a client works with a layer whose backward raises."""
    from leansplit.clients.app import split_client_app
    from leansplit.strategies import Deployment
    from leansplit.strategies.in_process_grid import InProcessGrid
    from leansplit.tasks import Examples

    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return split_at(
                torch.nn.Sequential(
                    torch.nn.Linear(4, 6), NoBackward(), torch.nn.Tanh(), torch.nn.Linear(6, 3)
                ),
                "2",
            )

    def data(client_id):
        generator = torch.Generator().manual_seed(client_id)
        return Examples(
            torch.randn(10, 4, generator=generator),
            torch.randint(0, 3, (10,), generator=generator),
        )

    model = build()
    with pytest.raises(AssertionError, match="differentiated"):
        model.client_model(data(0).inputs).sum().backward()
    loss = torch.nn.functional.cross_entropy
    spec = METHODS[method]
    strategy = spec.strategy(
        model, loss, spec.config_type(cohort_size=2), deployment=Deployment(num_clients=4)
    )
    grid = InProcessGrid(split_client_app(build, data, loss), 4)
    strategy.start(grid=grid, initial_arrays=strategy.initial_arrays(), num_rounds=3)
    assert strategy.rounds_completed == 3
    assert strategy.events == {}


def test_unknown_run_failure_is_not_swallowed(configure, run_in_process, monkeypatch):
    from leansplit.strategies.ho_sfl import HOSFL

    def broken(self, *args):
        raise RunFailedError("the mirror is gone")

    monkeypatch.setattr(HOSFL, "aggregate_train", broken)
    outcome = run_in_process(configure("ho-sfl"), afresh=True)
    assert outcome.status == "failed" and outcome.error == "the mirror is gone"
