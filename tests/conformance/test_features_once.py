"""The frozen client with a one-off upload: the same training, other traffic."""

import pytest

from leansplit.costs import SplitShape, frozen_traffic
from leansplit.federated import sample_cohort
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.server_app.methods import METHODS
from leansplit.server_app.outputs import run_result


def once(configure, optimizer="momentum", **options):
    return configure("frozen", optimizer, features_once=True, **options)


def cohorts(config):
    return [
        set(sample_cohort(config.seed, t, range(config.clients), config.cohort))
        for t in range(1, config.rounds + 1)
    ]


def learned(outcome):
    """What a run learned and on how much, evaluation by evaluation."""
    keys = ("round", "samples_seen", "accuracy", "loss", "train_loss")
    return [[row[key] for key in keys] for row in outcome.rounds]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "momentum", "server.lifetime": "round"},
        {"optimizer": "adamw", "batch_size": 7},  # no client's samples divide by that
        {"optimizer": "adamw", "batch_size": 100},  # more than any client has
        {"optimizer": "sgd", "model": "resnet18", "model_options.width": 8, "rounds": 6},
    ],
)
def test_the_trained_model_is_that_of_the_ordinary_run_bit_for_bit(
    options, configure, run_in_process, reference_checksum
):
    config = once(configure, **options)
    outcome = run_in_process(config)
    ordinary = run_in_process(configure("frozen", **options))
    assert outcome.events == {} and outcome.status == "completed"
    assert outcome.final_model_checksum == ordinary.final_model_checksum
    assert outcome.final_model_checksum == reference_checksum(config)
    assert learned(outcome) == learned(ordinary)


def test_ledger_equals_the_closed_formula(configure, run_in_process):
    config = once(configure)
    outcome = run_in_process(config)
    workload = config.workload()
    task = workload.load_task()
    model = workload.build_model(task)
    shape = SplitShape(
        smashed_elements=model.client_model(task.train.inputs[:1]).numel(),
        client_elements=ParameterSpec.of(trainable_parameters(model.client_model)).num_elements,
        client_samples=outcome.num_samples,
    )
    expected = METHODS["frozen"].traffic(
        config.method_config(), shape, cohorts(config), outcome.samples_seen
    )
    measured = {
        (direction, kind): outcome.ledger.total_bytes(direction, kind)
        for direction in ("uplink", "downlink")
        for kind in outcome.ledger.by_kind()
        if kind != "envelope" and outcome.ledger.total_bytes(direction, kind)
    }
    assert measured == expected


def test_the_formula_by_hand():
    shape = SplitShape(
        smashed_elements=64, client_elements=100, client_samples={0: 5, 1: 7, 2: 11, 3: 13}
    )
    attendance = [{0, 1}, {1}, {0, 2}]  # client 3 never takes part
    assert frozen_traffic(shape, attendance, 10**6, features_once=True) == {
        ("uplink", "smashed_data"): (5 + 7 + 11) * 64 * 4,
        ("uplink", "labels"): (5 + 7 + 11) * 8,
        ("downlink", "weights"): 3 * 100 * 4,
    }


def test_a_client_that_is_known_is_never_asked_again(configure, run_in_process):
    config = once(configure)
    outcome = run_in_process(config)
    seen: set[int] = set()
    rounds_with_news = 0
    for round, cohort in enumerate(cohorts(config), start=1):
        asked = {entry.client_id for entry in outcome.ledger if entry.round == round}
        assert asked == cohort - seen
        seen |= cohort
        rounds_with_news += bool(asked)
    assert rounds_with_news < config.rounds
    assert outcome.num_exchanges == rounds_with_news + 1  # and the set-up


def test_rounds_without_an_exchange_are_rounds_like_others(configure, run_in_process):
    config = once(configure, clients=3, cohort=3, rounds=6)
    outcome = run_in_process(config)
    assert outcome.rounds_completed == 6 and outcome.events == {}
    assert outcome.num_exchanges == 2
    assert {entry.round for entry in outcome.ledger} == {0, 1}
    ordinary = run_in_process(configure("frozen", clients=3, cohort=3, rounds=6))
    assert outcome.samples_seen == ordinary.samples_seen


def test_a_budget_ends_a_run_that_sends_nothing(configure, run_in_process):
    config = once(configure, clients=3, cohort=3, rounds=100, samples=5 * 3 * 8)
    outcome = run_in_process(config)
    assert outcome.status == "completed" and outcome.rounds_completed == 5


def test_a_client_that_fails_is_asked_again(configure, run_in_process):
    config = once(configure, clients=3, cohort=3, rounds=6)

    def fault(message, partition_id):
        is_early = message.metadata.group_id in {"1", "2"}
        is_training = message.metadata.message_type.startswith("train")
        return "not yet" if is_training and is_early and partition_id == 1 else None

    outcome = run_in_process(config, fault)
    assert outcome.events == {"dropped_clients": 2, "dropped_node": 2}
    assert {entry.client_id for entry in outcome.ledger if entry.round == 3} == {1}
    assert outcome.samples_seen == sum(2 * 8 if t <= 2 else 3 * 8 for t in range(1, 7))


def test_packing_and_storage_change_nothing(configure, run_in_process):
    plain = run_in_process(once(configure))
    packed = run_in_process(once(configure, clients_per_node=3, replica_storage="worker"))
    assert packed.final_model_checksum == plain.final_model_checksum
    assert [e for e in packed.ledger if e.round] == [e for e in plain.ledger if e.round]


def test_passes_are_those_that_clients_run(configure, run_in_process):
    config = once(configure)
    outcome = run_in_process(config)
    result = run_result(outcome, command=[], started_at="")
    participants = set().union(*cohorts(config))
    assert result.client_forwards == sum(outcome.num_samples[m] for m in participants)
    assert result.client_backwards == 0
    assert result.client_forwards != outcome.samples_seen
