"""Runs by the plain loops: the federated run's model, rows and traffic, without a message."""

import dataclasses
from inspect import signature

import pytest
import torch

from leansplit import reference
from leansplit.devices import exact_float32, usable_device
from leansplit.errors import UserError
from leansplit.server_app.closed_form import ALL_CLIENTS
from leansplit.server_app.methods import METHODS
from leansplit.server_app.methods.spec import _methods as methods_by_name
from leansplit.server_app.outputs import run_result, write_outcome
from leansplit.server_app.plain_execution import execute_plain
from leansplit.server_app.results import read_run

WATCHABLE = [
    name for name, spec in METHODS.items() if "after_round" in signature(spec.reference).parameters
]
CPU = torch.device("cpu")
NOW = "2026-01-01T00:00:00+00:00"


def measured(outcome):
    """What a run learned, evaluation by evaluation."""
    keys = ("round", "samples_seen", "accuracy", "loss")
    return [[row[key] for key in keys] for row in outcome.rounds]


def traffic(outcome):
    """Bytes by kind but for envelopes, which no formula covers."""
    return {kind: found for kind, found in outcome.ledger.by_kind().items() if kind != "envelope"}


def test_every_loop_of_ours_can_be_watched():
    ours = {name for name, spec in METHODS.items() if hasattr(reference, spec.reference.__name__)}
    assert len(ours) == 14 and ours <= set(WATCHABLE)


VARIANTS = [
    *((method, {}) for method in WATCHABLE),
    ("frozen", {"features_once": True}),
    ("cse-fsl", {"frozen_client": True}),
    ("heron-sfl", {"frozen_client": True}),
]


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=lambda value: str(value or ""))
def test_a_plain_run_is_the_federated_run(method, options, configure, run_in_process):
    config = configure(method, "adamw", **options)
    federated, plain = run_in_process(config), execute_plain(config, device=CPU)
    assert plain.status == "completed" and plain.error is None
    assert plain.final_model_checksum == federated.final_model_checksum
    assert measured(plain) == measured(federated)
    assert traffic(plain) == traffic(federated)
    assert plain.local_accuracy == federated.local_accuracy
    same = ("samples_seen", "rounds_completed", "ended_by", "num_samples", "label_counts")
    for name in (*same, "boundaries", "client_costs", "client_replays", "settings"):
        assert getattr(plain, name) == getattr(federated, name), name
    by_name = {name: run_result(outcome, command=[], started_at=NOW) for name, outcome in
               (("plain", plain), ("flower", federated))}  # fmt: skip
    for engine, result in by_name.items():
        assert (result.engine, result.device) == (engine, "cpu")
        assert any("plain loop" in note for note in result.notes) == (engine == "plain")
    passes = [(r.client_forwards, r.client_backwards) for r in by_name.values()]
    assert passes[0] == passes[1]


@pytest.mark.parametrize(
    "budget",
    [{"samples": 5 * 3 * 8}, {"target_accuracy": 0.15, "evaluate_every": 1}, {"rounds": 3}],
    ids=lambda budget: next(iter(budget)),
)
def test_budgets_end_a_plain_run_where_they_end_the_federated_one(
    budget, configure, run_in_process
):
    settings = {"rounds": 60, "local_steps": 1, "partition": "iid", "clients": 3, "cohort": 3}
    config = configure("sflv1", **(settings | budget))
    federated, plain = run_in_process(config), execute_plain(config, device=CPU)
    assert plain.ended_by == federated.ended_by == next(iter(budget)).removeprefix("target_")
    assert measured(plain) == measured(federated)
    assert plain.final_model_checksum == federated.final_model_checksum


def test_a_budget_of_bytes_counts_what_the_formula_counts(configure):
    config = configure("frozen", rounds=50, megabytes=0.05, evaluate_every=1)
    plain = execute_plain(config, device=CPU)
    assert plain.ended_by == "bytes" and plain.rounds_completed < 50
    last, before = plain.rounds[-1], plain.rounds[-2]
    spent = [row["uplink_bytes"] + row["downlink_bytes"] for row in (before, last)]
    assert spent[0] < 50_000 <= spent[1] == plain.ledger.total_bytes()


def test_progress_and_a_stop_work_as_in_a_federation(configure):
    import threading

    stop, seen = threading.Event(), []

    def on_progress(progress):
        seen.append(progress.round)
        if progress.round == 3:
            stop.set()

    plain = execute_plain(configure("frozen"), device=CPU, stop=stop, on_progress=on_progress)
    assert plain.status == "interrupted" and plain.rounds_completed == 3
    assert seen == sorted(seen) and plain.rounds[-1]["round"] == 3


def test_a_run_that_diverges_fails_and_keeps_what_it_measured(configure):
    config = configure("sflv1", "sgd", evaluate_every=1, **{"client.lr": 3e38, "server.lr": 3e38})
    plain = execute_plain(config, device=CPU)
    assert plain.status == "failed" and "non-finite test loss" in plain.error
    assert plain.rounds[0]["round"] == 0 and len(plain.rounds) > 1


@pytest.mark.parametrize("budget", [{"rounds": 1}, {"samples": 1}], ids=["rounds", "samples"])
def test_a_run_that_diverges_in_its_last_round_fails_too(budget, configure, run_in_process):
    """No client reports a loss after the last step: only the evaluation shows what it did."""
    rates = {"client.lr": 3e38, "server.lr": 3e38}
    config = configure("sflv1", "sgd", local_steps=1, **rates, **budget)
    for outcome in (run_in_process(config), execute_plain(config, device=CPU)):
        assert outcome.status == outcome.ended_by == "failed"
        assert "non-finite test loss" in outcome.error and "after round 1" in outcome.error
        assert [row["round"] for row in outcome.rounds] == [0, 1]


def test_results_are_written_and_read_like_any_others(configure, tmp_path):
    outcome = execute_plain(configure("ho-sfl"), device=CPU)
    write_outcome(tmp_path, outcome, command=["x"], started_at=NOW)
    run = read_run(tmp_path)
    assert run.result.engine == "plain" and run.result.num_exchanges == 0
    assert set(run.ledger["client_id"]) == {ALL_CLIENTS}
    assert run.ledger["bytes"].sum() == run.result.uplink_bytes + run.result.downlink_bytes
    assert run.result.final_accuracy == run.rounds["accuracy"].iloc[-1]


def test_a_loop_that_cannot_be_watched_is_refused(configure, monkeypatch):
    """A method of one's own may have the plain loop that the conformance suite asks for."""

    def loop(model, loss, clients, config, num_rounds):
        raise AssertionError("it must not be run")

    unwatched = dataclasses.replace(METHODS["frozen"], name="unwatched", reference=loop)
    monkeypatch.setitem(methods_by_name, "unwatched", unwatched)
    with pytest.raises(UserError, match="plain loop of unwatched takes no after_round"):
        execute_plain(configure("unwatched"), device=CPU)


def test_devices_that_cannot_be_used_are_refused():
    assert usable_device("cpu") == CPU
    for name in ("cudda", "meta", "cuda:99"):
        with pytest.raises(UserError, match=f"device '{name}' cannot be used here"):
            usable_device(name)


def test_gpus_are_kept_from_tf32_inside_the_block_only():
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with exact_float32():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before
