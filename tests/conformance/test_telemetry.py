"""Telemetry: the same run with and without it, and the gradient it measures is the true one."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from leansplit.clients.partition_cache import cached_partition
from leansplit.errors import UserError
from leansplit.federated import sample_cohort, take_batch
from leansplit.first_order import backward_step, server_step, train_forward
from leansplit.parameters import trainable_parameters
from leansplit.server_app.config import run_config
from leansplit.server_app.methods import METHODS
from leansplit.server_app.outputs import write_outcome
from leansplit.server_app.results import read_run
from leansplit.server_app.telemetry import (
    TELEMETRY_COLUMNS,
    TELEMETRY_FILE,
    EstimateWatcher,
    read_telemetry,
    telemetry_summary,
    telemetry_table,
)
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.strategies.running import RoundReport
from leansplit.zeroth_order import EstimateReport, ZerothOrderConfig

REPORTING = [name for name, spec in METHODS.items() if spec.reports_estimates]
# Every client has a zeroth-order segment, and both kinds of HO-FL's objective are seen.
OPTIONS = {"ho-fl": {"boundaries": '["cut", "all"]'}}
WITH_SERVER_PART = {"mu-splitfed", "zo-sfl"}
SHARED_DIRECTIONS = {"ho-sfl", "hosl", "decomfl"}
MANY = {  # directions, for the 20 parameters of a client or the 70 of the whole model
    "model_options": {"channels": [1, 1], "pool_after": [1, 2], "hidden": 0},
    "cut_layer": "pool2",
    "probe.num_perturbations": 500,
}


@pytest.fixture
def configure(configure):
    """The suite's small federation, with what a method needs to have estimates every round."""
    return lambda method, *args, **overrides: configure(
        method, *args, **OPTIONS.get(method, {}) | overrides
    )


def test_every_method_of_ours_that_probes_reports_its_estimates():
    ours = {name for name, spec in METHODS.items() if "zeroth_order" in spec.fields}
    assert ours == set(REPORTING)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("method", REPORTING)
def test_telemetry_changes_neither_bits_nor_traffic(method, optimizer, configure, run_in_process):
    plain = run_in_process(configure(method, optimizer, rounds=7))
    watched = run_in_process(configure(method, optimizer, rounds=7, telemetry_every=3))
    assert watched.status == "completed"
    assert watched.final_model_checksum == plain.final_model_checksum
    assert list(watched.ledger) == list(plain.ledger)
    assert watched.events == plain.events
    assert watched.num_exchanges == plain.num_exchanges
    drop = "wall_time_s"
    assert [{k: v for k, v in row.items() if k != drop} for row in watched.rounds] == [
        {k: v for k, v in row.items() if k != drop} for row in plain.rounds
    ]
    assert plain.telemetry == []
    assert sorted({row["round"] for row in watched.telemetry}) == [1, 4, 7]


@pytest.mark.parametrize("method", REPORTING)
def test_rows_are_complete_and_of_sane_sizes(method, configure, run_in_process):
    outcome = run_in_process(configure(method, rounds=4, telemetry_every=2))
    table = telemetry_table(outcome.telemetry)
    assert list(table.columns) == list(TELEMETRY_COLUMNS)
    # DeComFL and FedZO know no training loss.
    assert not table.drop(columns="train_loss").isna().any().any()
    assert set(table["part"]) == {"client"} | ({"server"} if method in WITH_SERVER_PART else set())
    assert set(table["num_clients"]) == {3 if method in SHARED_DIRECTIONS else 1}
    assert set(table["num_directions"]) == {3} and set(table["local_step"]) == {0}
    per_round = len(set(table["part"])) * (1 if method in SHARED_DIRECTIONS else 3)
    assert table["round"].value_counts().to_dict() == {1: per_round, 3: per_round}
    assert table["cosine"].abs().max() <= 1
    assert (table[["norm_ratio", "true_norm", "relative_variance"]] > 0).all().all()
    assert (table["samples_seen"] <= outcome.samples_seen).all()
    assert table["samples_seen"].is_monotonic_increasing


def first_order_client_gradient(config, model, task, round):
    """The gradient that SFL's clients would average in that round, by SFL's own steps."""
    shares = cached_partition(
        task.train.labels,
        num_clients=config.clients,
        config=config.partition_config(),
        seed=config.workload().partition_seed,
    )
    cohort = sample_cohort(config.seed, round, range(config.clients), config.cohort)
    batches = [
        take_batch(
            task.train.select(shares[m]), config.seed, round, m, batch_size=config.batch_size
        )
        for m in cohort
    ]
    total = sum(len(y) for _, y in batches)
    weights = [len(y) / total for _, y in batches]
    smashed = [train_forward(model.client_model, x, dropout_seed=0) for x, _ in batches]
    step = server_step(
        model.server_model,
        task.loss,
        None,
        smashed,
        [y for _, y in batches],
        weights,
        dropout_seed=0,
    )
    parameters = dict(model.client_model.named_parameters())
    means = {name: torch.zeros_like(p) for name, p in parameters.items()}
    standing_still = torch.optim.SGD(parameters.values(), lr=0.0)
    for weight, (x, _), gradient in zip(weights, batches, step.smashed_gradients, strict=True):
        z = train_forward(model.client_model, x, dropout_seed=0)
        backward_step(standing_still, z, gradient)
        for name, parameter in parameters.items():
            means[name] += weight * parameter.grad
    return means


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_ho_sfls_true_gradient_is_the_first_order_clients(num_rounds, configure, run_in_process):
    """In round t, from the model that t - 1 rounds of HO-SFL leave behind."""
    config = configure("ho-sfl", rounds=num_rounds, telemetry_every=1)
    workload = config.workload()
    task = workload.load_task()
    model = workload.build_model(task)
    if num_rounds > 1:
        before = run_in_process(configure("ho-sfl", rounds=num_rounds - 1))
        model.load_full_state_dict(before.final_state)
    expected = first_order_client_gradient(config, model, task, num_rounds)

    seen = []

    class Keeping(EstimateWatcher):
        def on_estimate(self, report):
            super().on_estimate(report)
            seen.append((report, report.true_gradient(self.batches(report.round))))

    watch, _ = run_watched(config, task, Keeping)
    report, gradient = seen[-1]
    assert report.round == num_rounds
    torch.testing.assert_close(
        gradient.float(), report.spec.flatten(expected), rtol=1e-4, atol=1e-7
    )
    norm = torch.cat([g.reshape(-1) for g in expected.values()]).norm()
    assert watch.rows[-1]["true_norm"] == pytest.approx(float(norm), rel=1e-4)
    # The report is of the parameters before the update.
    theta = trainable_parameters(model.client_model)
    assert torch.equal(report.vector, report.spec.flatten(theta))


def run_watched(config, task, watcher_type=EstimateWatcher):
    """Run with a watcher of the caller's choice, as a user's own app would."""
    from leansplit.clients.app import app
    from leansplit.clients.task_workload import task_client_data
    from leansplit.strategies import Deployment

    workload = config.workload()
    watcher = watcher_type(config.method_config(), task_client_data(workload, task), every=1)
    strategy = METHODS[config.method].strategy(
        workload.build_model(task),
        task.loss,
        config.method_config(),
        deployment=Deployment(num_clients=config.clients, workload=workload.to_dict()),
        observers=[watcher],
    )
    strategy.start(
        grid=InProcessGrid(app, config.clients),
        initial_arrays=strategy.initial_arrays(),
        num_rounds=config.rounds,
    )
    strategy.arrays()
    return watcher, strategy


@pytest.mark.parametrize("method", REPORTING)
def test_the_reported_estimate_is_the_one_that_was_stepped_on(method, configure):
    """One client, one step of plain SGD: it ends at theta - lr g."""
    steps = ("local_steps", "tau", "global_lr")
    single = {name: 1 for name in steps if name in METHODS[method].options}
    config = configure(method, "sgd", cohort=1, rounds=1, **single)
    task = config.workload().load_task()
    seen = []

    class Keeping(EstimateWatcher):
        def on_estimate(self, report):
            estimate, _ = report.estimate(self.batches(report.round))
            seen.append((report, estimate))

    _, strategy = run_watched(config, task, Keeping)
    after = strategy.model.full_state_dict()
    rates = {"client": config.client.lr, "server": config.server.lr}
    assert [report.part for report, _ in seen].count("client") == 1
    for report, estimate in seen:
        started = report.spec.views(report.vector)
        moved = report.spec.views((report.vector - rates[report.part] * estimate).float())
        for name in report.spec.names:
            if name.startswith("auxiliary."):
                continue  # HERON-SFL's head is no part of the model
            ended = after[name.removeprefix("client.")]
            assert not torch.equal(started[name], ended)
            torch.testing.assert_close(ended, moved[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", REPORTING)
def test_many_directions_measure_a_cosine_near_one(method, configure):
    """The estimate is seen to be the method's own (above), so the gradient is the true one."""
    single = {name: 1 for name in ("local_steps", "tau") if name in METHODS[method].options}
    config = configure(method, rounds=1, cohort=2, **single, **MANY)
    watcher, _ = run_watched(config, config.workload().load_task())
    assert watcher.rows
    for row in watcher.rows:
        assert row["num_elements"] <= 70 and row["num_directions"] == 500
        # The other side's slope is noise to a side of ZO-SFL.
        assert (0.8 if method == "zo-sfl" else 0.9) < row["cosine"] < 1
        assert row["norm_ratio"] == pytest.approx(1, abs=0.25)
        assert row["projection"] == pytest.approx(1, abs=0.25)  # its deviation is 0.06


VARIANTS = [(method, {}) for method in REPORTING] + [
    *((method, {"server_mode": "sequential"}) for method in sorted(WITH_SERVER_PART)),
    ("heron-sfl", {"frozen_client": True}),
]


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_every_scalar_is_the_true_gradients_slope(method, options, configure):
    """With P = 1 and |u|^2 = d: |g_hat| = |s| sqrt(d) and <g_hat, g> = s <g, u>, where s = <g, u>.

    In later rounds, with several local steps and server steps, and one server for all clients.
    """
    probe = {
        "probe.num_perturbations": 1,
        "probe.direction": "sphere",
        "probe.estimator": "central",
    }
    config = configure(method, "sgd", rounds=3, **options, **probe)
    rows = run_watched(config, config.workload().load_task())[0].rows
    assert {row["round"] for row in rows} == {1, 2, 3}
    # ZO-SFL's one scalar is the slope of both sides together.
    is_joint = method == "zo-sfl"
    for group in zip(rows[::2], rows[1::2], strict=True) if is_joint else zip(rows, strict=True):
        assert len({row["part"] for row in group}) == len(group)
        size = math.sqrt(group[0]["num_elements"])
        s = group[0]["norm_ratio"] * group[0]["true_norm"] / size
        true = sum(row["projection"] * row["true_norm"] ** 2 for row in group) / s
        assert true == pytest.approx(s, abs=0.01 * max(row["true_norm"] for row in group))


def test_a_client_without_zeroth_order_layers_has_no_row(configure, run_in_process):
    config = configure("ho-fl", rounds=1, cohort=8, boundaries='["none", "cut"]', telemetry_every=1)
    assert len(run_in_process(config).telemetry) == 4
    config = configure("ho-fl", rounds=1, boundaries='["none"]', telemetry_every=1)
    assert run_in_process(config).telemetry == []


def test_a_part_without_trained_parameters_has_no_row(configure):
    watcher = EstimateWatcher(configure("ho-sfl").method_config(), lambda m: None, every=1)
    nothing = EstimateReport.of_client(1, 0, {}, (1,), None, lambda *_: None, ZerothOrderConfig())
    watcher.on_estimate(nothing)
    watcher.on_round(RoundReport(1, 8, None, 1, {}))
    assert watcher.rows == []


@pytest.mark.parametrize("method", REPORTING)
def test_nothing_is_put_together_when_nobody_watches(
    method, configure, run_in_process, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a report was built")

    monkeypatch.setattr(EstimateReport, "__init__", refuse)
    monkeypatch.setattr("leansplit.strategies.estimates.copy", SimpleNamespace(deepcopy=refuse))
    assert run_in_process(configure(method, rounds=1), afresh=True).status == "completed"
    # Round 1 is watched.
    watched = configure(method, rounds=1, telemetry_every=5)
    assert run_in_process(watched, afresh=True).status == "failed"


def test_the_mean_cosine_is_what_theory_expects(configure, run_in_process):
    outcome = run_in_process(configure("ho-sfl", rounds=60, telemetry_every=1))
    summary = telemetry_summary(outcome.telemetry)["client"]
    assert summary["num_estimates"] == 60
    cosines = torch.tensor([row["cosine"] for row in outcome.telemetry])
    slack = 4 * float(cosines.std()) / math.sqrt(60)
    assert abs(summary["mean_cosine"] - summary["expected_cosine"]) < slack


def test_clients_that_drop_out_are_in_neither_gradient(configure, run_in_process):
    def fault(message, partition_id):
        is_probe = message.metadata.message_type.endswith("ho_sfl_probe")
        return "its battery is flat" if is_probe and partition_id == 2 else None

    config = configure("ho-sfl", cohort=8, rounds=2, telemetry_every=1)
    outcome = run_in_process(config, fault)
    assert outcome.events["dropped_clients"] == 2
    assert [row["num_clients"] for row in outcome.telemetry] == [7, 7]
    assert all(math.isfinite(row["cosine"]) for row in outcome.telemetry)


def test_a_round_that_fails_leaves_no_half_row(configure, run_in_process):
    rates = {"client.lr": 3e38, "server.lr": 3e38}
    outcome = run_in_process(configure("ho-sfl", "sgd", telemetry_every=1, **rates))
    assert outcome.status == "failed"
    telemetry_table(outcome.telemetry)


def test_what_a_run_leaves_behind(configure, run_in_process, tmp_path):
    def written(**overrides):
        outcome = run_in_process(configure("ho-sfl", rounds=3, **overrides))
        write_outcome(tmp_path, outcome, command=[], started_at="2026-01-01T00:00:00+00:00")
        return read_run(tmp_path).result.telemetry, read_telemetry(tmp_path)

    summary, table = written(telemetry_every=2)
    assert table is not None
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {
        name: "object" if kind == "str" and table[name].dtype == object else kind
        for name, kind in TELEMETRY_COLUMNS.items()
    }
    assert table["round"].tolist() == [1, 3]
    assert summary["client"]["mean_cosine"] == pytest.approx(table["cosine"].mean())
    assert (summary["client"]["num_estimates"], summary["client"]["num_directions"]) == (2, 3)
    # The same folder again without telemetry: nothing of the earlier run is left.
    assert written() == ({}, None)
    (tmp_path / TELEMETRY_FILE).write_bytes(b"not parquet")
    with pytest.raises(UserError, match=TELEMETRY_FILE):
        read_telemetry(tmp_path)


def test_undefined_values_stay_out_of_means():
    row = dict.fromkeys(TELEMETRY_COLUMNS, 1.0) | {"part": "client", "num_directions": 1}
    rows = [row | {"cosine": 0.5, "relative_variance": math.nan}, row | {"cosine": math.nan}]
    rows[1]["relative_variance"] = math.nan
    summary = telemetry_summary(rows)["client"]
    assert summary["mean_cosine"] == 0.5
    assert summary["mean_relative_variance"] is None
    assert telemetry_summary([]) == {}
    assert isinstance(telemetry_table([]), pd.DataFrame)


def test_mistakes_are_the_users(configure):
    with pytest.raises(UserError, match="telemetry_every must be at least 0, got -1"):
        configure("ho-sfl", telemetry_every=-1)
    with pytest.raises(UserError, match="telemetry_every cannot be 'often'"):
        configure("ho-sfl", telemetry_every="often")
    refusal = (
        "sflv2 reports no gradient estimates, so 'telemetry_every' .* one of ho-sfl, heron-sfl"
    )
    with pytest.raises(UserError, match=refusal):
        run_config("sflv2", {"telemetry_every": 5})
    config = configure("ho-sfl")
    with pytest.raises(UserError, match="every 1 or more rounds, got 0"):
        EstimateWatcher(config.method_config(), lambda m: None, every=0)
