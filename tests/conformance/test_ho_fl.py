"""HO-FL beyond what every method is held to: its options, lost answers, copies that differ."""

import dataclasses

import pytest
import torch

from leansplit.clients import ho_fl as client_half
from leansplit.costs import SplitShape
from leansplit.errors import UserError
from leansplit.experiments.display import result_table
from leansplit.experiments.preflight import check_run
from leansplit.experiments.summary import boundaries_text
from leansplit.federated import HOFLConfig
from leansplit.server_app.execution import settled_config
from leansplit.server_app.methods import METHODS
from leansplit.server_app.outputs import run_result
from leansplit.wire import HybridTrainReply

OPTIONS = {
    "none": {"boundaries": ["none"]},
    "all": {"boundaries": ["all"]},
    "many": {"boundaries": ["none", "conv1", "pool2", "all"]},
    "shuffled": {"boundaries": ["none", "conv1", "all"], "boundary_assignment": "shuffled"},
    "text": {"boundaries": '["conv1", "all"]'},
    "uniform": {"boundaries": ["pool1", "none"], "dimension_preference": 0.0},
    "preference": {"dimension_preference": 0.95},
    "central": {"boundaries": ["pool1", "all"], "probe.estimator": "central"},
    "rademacher": {"boundaries": ["pool1", "all"], "probe.direction": "rademacher"},
    "sphere": {"probe.direction": "sphere", "probe.num_perturbations": 1},
    "memory": {"memory_budgets_mb": [0.055, 0.065, 1.0]},
    "one step": {"local_steps": 1, "client.lifetime": "round"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_its_reference_with_every_option(
    options, configure, run_in_process, reference_checksum, expected
):
    optimizer = "sgd" if "one step" in options else "adamw"
    config = configure("ho-fl", optimizer, **{"rounds": 8, **options})
    outcome = run_in_process(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(config)
    run = expected(config)
    predicted = METHODS["ho-fl"].traffic(
        run.settings, run.shape, run.attendance, outcome.samples_seen
    )
    for (direction, kind), num_bytes in predicted.items():
        assert outcome.ledger.total_bytes(direction, kind) == num_bytes
    assert outcome.num_exchanges == config.rounds + 1


def test_memory_budgets_become_boundaries(configure):
    config = configure("ho-fl", memory_budgets_mb=[0.055, 1.0])
    task = config.workload().load_task()
    settings = settled_config(config, task, config.workload().build_model(task))
    assert settings.boundaries[1] == "none" != settings.boundaries[0]
    assert isinstance(settings, HOFLConfig) and not settings.memory_budgets_mb


@pytest.mark.parametrize("assignment", ["cycle", "shuffled"])
@pytest.mark.parametrize(
    "options", [{"boundaries": ["conv1", "none", "all"]}, {"memory_budgets_mb": [0.055, 1.0]}]
)
def test_the_result_says_who_got_which_boundary(
    options, assignment, configure, run_in_process, expected
):
    config = configure("ho-fl", rounds=1, boundary_assignment=assignment, **options)
    outcome, run = run_in_process(config), expected(config)
    result = run_result(outcome, command=[], started_at="2026-01-01T00:00:00+00:00")
    held = {m: b.boundary for b in result.order_boundaries for m in b.clients}
    assert held == run.settings.boundaries_of(range(config.clients))
    sizes = [b.zeroth_order_parameters for b in result.order_boundaries]
    assert sizes == sorted(sizes) and sizes[0] == 0 < sizes[-1]
    for b in result.order_boundaries:
        assert {run.shape.zeroth_elements[m] for m in b.clients} == {b.zeroth_order_parameters}
    text = ", ".join(f"{b.boundary} × {len(b.clients)}" for b in result.order_boundaries)
    assert boundaries_text(result) == text
    cells = [list(column.cells) for column in result_table(result).columns]
    assert text == cells[1][cells[0].index("order boundaries")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boundaries": ["none", "con1"]}, "unknown order boundary 'con1'; did you mean 'conv1'"),
        ({"memory_budgets_mb": [1.0, 1e-6]}, "no boundary fits in 1e-06 MB"),
    ],
)
def test_mistakes_are_found_before_anything_starts(options, message, configure):
    with pytest.raises(UserError, match=message):
        check_run(configure("ho-fl", **options))


def test_preferred_clients_take_part_more_often(configure, expected):
    config = configure("ho-fl", rounds=200, boundaries=["none", "all"], dimension_preference=0.9)
    counts = [sum(m in cohort for cohort in expected(config).attendance) for m in range(8)]
    assert all(len(cohort) == 3 for cohort in expected(config).attendance)
    favoured = sorted(range(8), key=lambda m: -counts[m])[:3]
    assert all(m % 2 == 0 for m in favoured)  # first-order clients have the even ids
    assert min(counts[m] for m in favoured) > 150
    assert max(counts[m] for m in range(8) if m not in favoured) < 30


@pytest.fixture
def handler(monkeypatch):
    """Change what a client answers."""
    from leansplit.clients import app as client_module

    def install(change):
        original = client_half.train

        def changed(session, request):
            return change(session, request, original(session, request))

        table = {"ho_fl_train": (client_half.HANDLERS["ho_fl_train"][0], changed)}
        known = client_module.registered_handlers()
        monkeypatch.setattr(client_module, "registered_handlers", lambda: {**known, **table})
        return client_module.task_client_app()

    return install


def run_on(app, config):
    from leansplit.server_app.execution import execute
    from leansplit.strategies.in_process_grid import InProcessGrid

    return execute(config, InProcessGrid(app, config.clients))


def test_answers_that_never_arrive_leave_moments_as_they_were(handler, configure):
    """The client has trained and stored its moments, then fails: its next start is the agreed."""
    failed = []

    def fail(session, request, reply):
        if session.client_id in (1, 2) and request.round % 3 == 0:
            failed.append(session.client_id)
            raise ConnectionError("the answer was lost")
        return reply

    config = configure(
        "ho-fl", "adamw", boundaries=["cut", "all"], cohort=5, **{"client.lifetime": "run"}
    )
    outcome = run_on(handler(fail), config)
    assert outcome.status == "completed"
    assert outcome.events["dropped_error"] == outcome.events["dropped_clients"] == len(failed) > 0


def test_a_client_that_lost_its_memory_starts_from_zero_and_says_so(handler, configure):
    forgot = []

    def forget(session, request, reply):
        assert isinstance(reply, HybridTrainReply)
        if request.moments_round >= 0 and reply.moments_round < 0:
            forgot.append(session.client_id)
        if request.round == 4:
            session.memory.note("latest-moments", -1)
            session.memory.note("agreed-moments", -1)
        return reply

    config = configure(
        "ho-fl", "adamw", boundaries=["cut", "all"], cohort=5, **{"client.lifetime": "run"}
    )
    outcome = run_on(handler(forget), config)
    assert outcome.status == "completed" and outcome.events == {}
    assert forgot


def test_a_segment_that_cannot_be_rebuilt_is_left_out_and_counted(handler, configure):
    def corrupt(session, request, reply):
        if session.client_id == 2:
            return dataclasses.replace(reply, scalars=reply.scalars + 1.0)
        return reply

    config = configure("ho-fl", boundaries=["cut"], cohort=8, rounds=3)
    outcome = run_on(handler(corrupt), config)
    assert outcome.status == "completed"
    counted = ("checksum_mismatches", "dropped_clients", "dropped_replica")
    assert outcome.events == dict.fromkeys(counted, 3)


@pytest.mark.parametrize("what", ["scalars", "weights"])
def test_an_answer_of_another_shape_is_left_out(what, handler, configure):
    def cut_short(session, request, reply):
        if session.client_id == 2:
            shorter = {"scalars": reply.scalars[1:], "weights": {}}[what]
            return dataclasses.replace(reply, **{what: shorter})
        return reply

    config = configure("ho-fl", boundaries=["cut"], cohort=8, rounds=2)
    outcome = run_on(handler(cut_short), config)
    assert outcome.status == "completed"
    assert outcome.events == {"dropped_clients": 2, "dropped_shape": 2}


def test_a_non_finite_scalar_drops_its_client(handler, configure):
    def corrupt(session, request, reply):
        if session.client_id == 2 and request.round == 2:
            return dataclasses.replace(reply, scalars=reply.scalars * float("nan"))
        return reply

    outcome = run_on(handler(corrupt), configure("ho-fl", boundaries=["cut"], cohort=8))
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {"dropped_clients": 1, "dropped_non_finite": 1}


def test_the_row_prices_the_most_demanding_client(configure, run_in_process):
    peaks = {
        name: run_in_process(
            configure("ho-fl", rounds=1, boundaries=[name])
        ).client_costs.peak_memory_bytes
        for name in ("none", "pool2", "all")
    }
    assert len(set(peaks.values())) == 3
    together = run_in_process(configure("ho-fl", rounds=1, boundaries=list(peaks)))
    assert together.client_costs.peak_memory_bytes == max(peaks.values())


def test_passes_are_averaged_over_boundaries():
    passes = METHODS["ho-fl"].client_passes
    config = HOFLConfig(cohort_size=1)  # q = 2
    assert passes(dataclasses.replace(config, boundaries=("none",))) == (1, 1)
    assert passes(dataclasses.replace(config, boundaries=("all",))) == (3, 0)
    assert passes(dataclasses.replace(config, boundaries=("conv1",))) == (3, 1)
    assert passes(dataclasses.replace(config, boundaries=("none", "all", "cut", "none"))) == (
        2,
        0.75,
    )


def test_the_hook_draws_what_the_strategy_draws():
    config = HOFLConfig(cohort_size=2, root_seed=5)
    shape = SplitShape(smashed_elements=1, zeroth_elements=(0, 9, 0, 9, 0))
    cohort = METHODS["ho-fl"].cohort(config, shape, range(5), 3)
    assert len(cohort) == 2 and cohort == METHODS["ho-fl"].cohort(config, shape, range(5), 3)
    assert torch.tensor(cohort).max() < 5
