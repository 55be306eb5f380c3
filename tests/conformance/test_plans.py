"""A plan says what a run then does: bytes, round trips, FLOPs and memory of every method."""

import pytest

from leansplit.server_app.config import run_config
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.planning import Planner, Problem
from tests.language import CONFIGS, config_json
from tests.whole_grid import WHOLE_GRID

ENVELOPE = "envelope"


def planned(config):
    planner = Planner(config, Problem.of(config.workload().load_task()))
    return planner.plan(config)


def booked(outcome):
    return {
        (direction.removesuffix("_bytes"), kind): size
        for kind, sizes in outcome.ledger.by_kind().items()
        for direction, size in sizes.items()
        if kind != ENVELOPE and size
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_run_does_what_its_plan_says(method, configure, run_in_process):
    config = configure(method, partition="iid", batch_size=4, rounds=4)
    outcome, plan = run_in_process(config), planned(config)
    assert outcome.events == {}
    assert plan.traffic == booked(outcome)
    assert plan.round_trips == outcome.num_exchanges
    assert plan.step == outcome.client_costs
    assert plan.participations * plan.steps_per_round * 4 == outcome.samples_seen
    require_agreement(outcome)
    assert outcome.predicted.client_step_flops == plan.step.flops
    assert outcome.predicted.client_peak_memory_bytes == plan.step.peak_memory_bytes


def require_agreement(outcome):
    """What a client counted of its own step, and the ledger, are what was predicted."""
    predicted, measured = outcome.predicted, outcome.measured
    assert measured.client_step_flops == predicted.client_step_flops > 0
    # Clients also hold labels that their step does not need, and numbers of their batch.
    peaks = measured.client_peak_memory_bytes, predicted.client_peak_memory_bytes
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)
    assert measured.uplink_bytes == predicted.uplink_bytes
    assert measured.downlink_bytes == predicted.downlink_bytes


ONE_STEP = ("ho-sfl", "sflv2", "cse-fsl", "zo-sfl", "decomfl", "fedavg")


@pytest.mark.parametrize("lifetime", ["run", "round"])
@pytest.mark.parametrize("method", ONE_STEP)
def test_one_step_of_clients_that_share_a_replica(method, lifetime, configure, run_in_process):
    shared = {"replica_storage": "worker", "partition": "iid", "rounds": 4, "batch_size": 16}
    one = {"local_steps": 1, "upload_period": 1, "client.lifetime": lifetime}
    shared |= {key: value for key, value in one.items() if is_used(method, key)}
    outcome = run_in_process(configure(method, "adamw", **shared))
    require_agreement(outcome)
    assert bool(outcome.repeated_step_flops) == (method == "sflv2")
    assert outcome.measured_by.startswith("client ")


def test_nobody_counts_where_nobody_takes_part_twice(configure, run_in_process):
    outcome = run_in_process(configure("frozen", partition="iid", rounds=1, batch_size=4))
    assert outcome.measured.client_step_flops is None and not outcome.measured_by
    assert outcome.measured.uplink_bytes == outcome.predicted.uplink_bytes > 0


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sflv2", {"client_order": "sequential"}),
        ("frozen", {"features_once": True}),
        ("cse-fsl", {"frozen_client": True}),
        ("ho-sfl", {"samples": 20}),
        ("ho-sfl", {"probe_ahead": True, "probe.estimator": "central"}),
    ],
    ids=str,
)
def test_options_that_change_what_crosses(method, options, configure, run_in_process):
    config = configure(method, partition="iid", batch_size=4, rounds=4, **options)
    outcome, plan = run_in_process(config), planned(config)
    assert plan.traffic == booked(outcome)
    assert plan.round_trips == outcome.num_exchanges
    assert plan.rounds == outcome.rounds_completed


def test_one_more_participation_is_what_each_more_round_of_one_client_costs(configure):
    for method in ("ho-sfl", "sflv2", "heron-sfl", "fedavg"):
        overrides = {"clients": 1, "cohort": 1, "partition": "iid", "batch_size": 4}
        four = planned(configure(method, rounds=4, **overrides))
        five = planned(configure(method, rounds=5, **overrides))
        more = {k: v - four.traffic.get(k, 0) for k, v in five.traffic.items()}
        assert {k: v for k, v in more.items() if v} == four.client_traffic
        assert five.round_trips - four.round_trips == four.client_round_trips


def write_texts(folder, filler):
    for name, num_rows in (("train", 40), ("test", 8)):
        rows = [f"{'good' if i % 2 else 'poor'}{filler(i)},{i % 2}" for i in range(num_rows)]
        (folder / f"{name}.csv").write_text("\n".join(["sentence,label", *rows]) + "\n")
    return str(folder)


def of_texts(method, folder, family="llama", cut="2"):
    settings = {
        "task": "text",
        "task_options.data_path": folder,
        "task_options.tokenizer": "bytes",
        "model_options.source": config_json(family),
        "cut_layer": cut,
        "clients": 4,
        "cohort": 2,
        "rounds": 3,
        "batch_size": 4,
        "probe.num_perturbations": 2,
        "client.lr": 0.001,
        "server.lr": 0.001,
    }
    used = {key: value for key, value in settings.items() if is_used(method, key)}
    return run_config(method, used)


@pytest.mark.parametrize("method", ["ho-sfl", "sflv2", "cse-fsl", "hosl", "zo-sfl"])
def test_texts_of_equal_length(method, tmp_path, run_in_process):
    config = of_texts(method, write_texts(tmp_path, lambda i: i % 7))
    outcome, plan = run_in_process(config), planned(config)
    assert plan.traffic == booked(outcome)
    assert plan.step.flops == outcome.client_costs.flops
    # A batch without padding needs no mask of its own, which only a look at its values can tell.
    measured = outcome.client_costs.peak_memory_bytes
    assert measured <= plan.step.peak_memory_bytes <= 1.05 * measured


@pytest.mark.parametrize("method", ["ho-sfl", "mu-splitfed"])
def test_texts_of_any_length(method, tmp_path, run_in_process):
    config = of_texts(method, write_texts(tmp_path, lambda i: "x" * (i % 11)))
    outcome, plan = run_in_process(config), planned(config)
    predicted, measured = outcome.predicted, outcome.measured
    assert measured.client_step_flops == predicted.client_step_flops < plan.step.flops
    assert (
        measured.uplink_bytes
        == predicted.uplink_bytes
        < sum(size for (way, _), size in plan.traffic.items() if way == "uplink")
    )
    peak = predicted.client_peak_memory_bytes
    assert measured.client_peak_memory_bytes == pytest.approx(peak, rel=0.05)


CUTS = {
    "digits-cnn": ("conv1", "tanh2", "pool2"),
    "resnet18": ("stem", "layer1.0", "layer3"),
    **dict.fromkeys(("gpt2", "opt", "llama"), ("1", "2", "3")),
}
GRID = [(method, model, cut) for method in METHODS for model, cuts in CUTS.items() for cut in cuts]


@pytest.mark.parametrize(("method", "model", "cut"), GRID if WHOLE_GRID else GRID[::16])
def test_every_model_at_every_cut(method, model, cut, configure, tmp_path, run_in_process):
    """Bytes, round trips and FLOPs are exact, and the client's own peak is within 5 %."""
    if model in CONFIGS:
        folder = write_texts(tmp_path, lambda i: i % 7)
        config = of_texts(method, folder, model, cut)
    else:
        keys = {"model": model, "cut_layer": cut, "batch_size": 4, "rounds": 3, "partition": "iid"}
        keys |= {"model_options.width": 8} if model == "resnet18" else {}
        keys |= {"boundaries": ["cut"], "task_options.max_train": 96, "clients": 4, "cohort": 4}
        keys |= {"client.lr": 1e-4, "server.lr": 1e-4}  # nothing diverges
        config = configure(method, **{k: v for k, v in keys.items() if is_used(method, k)})
    outcome, plan = run_in_process(config), planned(config)
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {}
    assert plan.traffic == booked(outcome)
    assert plan.round_trips == outcome.num_exchanges
    predicted, measured = outcome.predicted, outcome.measured
    assert measured.client_step_flops == predicted.client_step_flops == plan.step.flops > 0
    peak = predicted.client_peak_memory_bytes
    assert measured.client_peak_memory_bytes == pytest.approx(peak, rel=0.05)
