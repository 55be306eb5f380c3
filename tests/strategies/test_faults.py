"""Injected faults, the quorum, and what hostile clients are dropped for (docs/faults.md)."""

import dataclasses

import pytest
import torch

from leansplit.clients.app import task_client_app
from leansplit.errors import UserError
from leansplit.federated import AttackConfig, FaultsConfig
from leansplit.server_app.checkpoint_files import CheckpointError, find_checkpoints
from leansplit.server_app.checkpoints import Checkpoints, resumable
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.strategies import HOSFL, Deployment, federation, observed_grid
from leansplit.strategies.in_process_grid import InProcessGrid
from leansplit.strategies.wanted import Wanted
from leansplit.wire import (
    DecodeError,
    DepositReply,
    DepositRequest,
    ProbedSmashedDataReply,
    SmashedDataReply,
    decode_as,
    encode,
    forms_of,
    with_payloads,
)

SMALL = {
    "task_options.max_train": 120,
    "task_options.max_test": 40,
    "clients": 8,
    "cohort": 4,
    "rounds": 6,
    "evaluate_every": 6,
}
ALL_KINDS = {
    "faults.drop": 0.1,
    "faults.vanish": 0.1,
    "faults.error": 0.05,
    "faults.late": 0.1,
    "faults.die": 0.1,
}


def config(method="ho-sfl", **keys):
    return run_config(method, SMALL | keys)


def run(settings, *, fault=None, checkpoints=None):
    num_nodes = -(-settings.clients // settings.clients_per_node)
    grid = InProcessGrid(task_client_app(), num_nodes, fault=fault)
    return execute(settings, grid, checkpoints=checkpoints)


def test_clients_dropped_for_one_reason_are_one_line(monkeypatch):
    lines = []
    monkeypatch.setattr(federation.log, "warning", lambda text, *parts: lines.append(text % parts))
    run(config(clients=8, cohort=8, rounds=1, **{"faults.error": 1.0}))
    said = "8 clients (0, 1, 2, 3, 4, ...) dropped from this step: the step failed (injected)"
    assert lines and set(lines) == {said}
    lines.clear()
    run(config(clients=1, cohort=1, rounds=1, **{"faults.error": 1.0}))
    assert set(lines) == {"client 0 dropped from this step: the step failed (injected)"}


def test_what_strikes_is_a_function_of_seed_round_client_and_exchange():
    faults = FaultsConfig(drop=0.2, vanish=0.1, late=0.05, die=0.05, twice=0.5)
    struck = [
        [faults.strikes(seed, t, m, e) for t in range(100) for m in range(10) for e in (0, 1)]
        for seed in (1, 1, 2)
    ]
    assert struck[0] == struck[1] != struck[2]
    first, second = struck[0][::2], struck[0][1::2]
    assert 150 < first.count("drop") == second.count("drop") < 250  # away is away
    assert "vanish" not in first and 60 < second.count("vanish") < 140
    assert not any(FaultsConfig().strikes(1, t, 0, 0) for t in range(50))
    assert 30 < sum(faults.repeats(1, t, 3) for t in range(100)) < 70


@pytest.mark.parametrize("wrong", [{"drop": 1.5}, {"late": -0.1}, {"late": 0.6, "die": 0.6}])
def test_rates_that_are_no_chances_are_refused(wrong):
    with pytest.raises(UserError, match=r"\[0, 1\]|at most 1"):
        FaultsConfig(**wrong)


@pytest.mark.parametrize("method", ["ho-sfl", "sflv1", "fedavg"])
def test_a_run_completes_under_every_fault_and_is_the_same_every_time(method):
    settings = config(method, replica_storage="worker", **ALL_KINDS)
    outcome, again = run(settings), run(settings)
    assert outcome.status == "completed", outcome.error
    events = outcome.events
    kinds = {name: n for name, n in events.items() if name.startswith("dropped_")}
    assert kinds.pop("dropped_clients") == sum(kinds.values()) > 0
    # A client of FedAvg has no word of its own for an error: its node's whole answer is one.
    said = set() if method == "fedavg" else {"dropped_error"}
    assert kinds.keys() == {"dropped_silent", "dropped_node"} | said
    assert not events.keys() & {"resyncs", "checksum_mismatches", "unsynchronised_clients"}
    assert again.events == events
    assert again.final_model_checksum == outcome.final_model_checksum


@pytest.mark.parametrize("method", ["ho-sfl", "fedavg"])
def test_answers_that_come_again_are_counted_and_change_nothing(method):
    plain, repeated = run(config(method)), run(config(method, **{"faults.twice": 1}))
    assert repeated.events["unasked_answers"] > 0
    assert repeated.events.keys() == {"unasked_answers"}
    assert repeated.final_model_checksum == plain.final_model_checksum


@pytest.mark.parametrize("method", ["ho-sfl", "fedzo", "fedavg"])
def test_a_client_that_sends_no_numbers_is_dropped_and_the_run_goes_on(method):
    keys = {"attack.kind": "nan", "attack.share": 0.25}
    outcome = run(config(method, cohort=8, rounds=2, **keys))
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {"dropped_clients": 4, "dropped_non_finite": 4}


OVERFLOWING = [
    ("ho-sfl", {}),
    ("ho-sfl", {"probe_ahead": True}),
    ("hosl", {}),
    ("frozen", {}),
    ("sflv1", {}),
    ("sflv2", {}),
    ("sflv2", {"client_order": "sequential"}),
    ("cse-fsl", {}),
    ("cse-fsl", {"server_mode": "summed"}),
    ("fsl-sage", {"server_mode": "averaged"}),
    ("mu-splitfed", {}),
    ("zo-sfl", {}),
]


def overflow(monkeypatch, client_ids):
    """Have clients upload finite smashed data in round 2 that overflow on their way to the loss."""

    def enormous(session, request, reply):
        if session.client_id not in client_ids or getattr(request, "round", 0) != 2:
            return reply
        return with_payloads(
            reply,
            lambda kind, tensors: (
                {n: torch.full_like(z, 3e38) for n, z in tensors.items()}
                if kind == "smashed_data"
                else None
            ),
        )

    monkeypatch.setattr("leansplit.clients.app.released", enormous)


@pytest.mark.parametrize(("method", "keys"), OVERFLOWING)
def test_smashed_data_that_overflow_cost_their_client_the_round_only(method, keys, monkeypatch):
    """The others end with the model of a run in which that client was away in that round."""

    def away(message, partition_id):
        is_round = message.metadata.group_id == "2" and "train" in message.metadata.message_type
        return "away" if is_round and partition_id == 1 else None

    settings = config(method, clients=4, cohort=4, rounds=3, **keys)
    without = run(settings, fault=away)
    overflow(monkeypatch, {1})
    outcome = run(settings)
    assert outcome.status == "completed", outcome.error
    assert outcome.events == {"dropped_clients": 1, "dropped_non_finite": 1}
    assert outcome.final_model_checksum == without.final_model_checksum


@pytest.mark.parametrize("method", ["ho-sfl", "hosl", "sflv2", "cse-fsl", "zo-sfl"])
def test_a_server_that_makes_no_finite_loss_of_anything_ends_the_run(method, monkeypatch):
    overflow(monkeypatch, range(4))
    outcome = run(config(method, clients=4, cohort=4, rounds=3))
    assert outcome.status == "failed" and "non-finite loss" in outcome.error
    assert " in round 2 from client " in outcome.error


def test_an_answer_with_more_than_was_asked_for_is_refused():
    tensors = {"smashed_data": torch.ones(2, 3), "labels": torch.ones(2)}
    wanted = Wanted(SmashedDataReply, lambda _: forms_of(tensors))
    more = ProbedSmashedDataReply(**tensors, plus=torch.ones(1))
    with pytest.raises(DecodeError) as refused:
        wanted.read(0, encode(more))
    assert refused.value.rejection == "record"


def test_processes_that_died_are_given_time_to_be_replaced(monkeypatch):
    """Until then every message fails at once, and rounds would be over in no time."""
    waited = []
    monkeypatch.setattr(observed_grid.time, "sleep", waited.append)
    monkeypatch.setattr(InProcessGrid, "replaces_processes", True)

    def dead_in_two_rounds(message, partition_id):
        is_dead = message.metadata.group_id in {"2", "3"} or (
            message.metadata.group_id == "5" and partition_id < 3
        )
        return "the worker died" if is_dead else None

    settings = config(clients=4, cohort=4, rounds=6)
    outcome = run(settings, fault=dead_in_two_rounds)
    assert outcome.status == "completed" and outcome.events["empty_rounds"] == 2
    assert [pause for pause in waited if pause >= 1] == [1.0, 2.0]  # in round 5 one answered


def test_too_long_an_answer_is_not_read():
    outcome = run(config(max_reply_mb=1e-3))
    assert outcome.status == "failed" and "max_reply_mb" in outcome.error
    assert outcome.events["dropped_size"] == 12


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("ho-sfl", "sign_flip"),
        ("sflv1", "scale"),  # its last request does not carry the weights that it differs from
        ("fedavg", "random"),
        ("ho-sfl", "label_flip"),
    ],
)
def test_hostile_clients_are_heard_and_change_the_run(method, kind):
    keys = {"cohort": 8, "rounds": 1, "attack.share": 0.25}
    outcome = run(config(method, **keys, **{"attack.kind": kind}))
    assert outcome.events == {}
    assert outcome.final_model_checksum != run(config(method, **keys)).final_model_checksum


def test_hostile_clients_are_a_share_of_all_and_the_same_all_run_long():
    attack = AttackConfig(kind="scale", share=0.3)
    hostile = [m for m in range(40) if attack.is_hostile(5, m, 40)]
    assert len(hostile) == 12
    assert hostile != [m for m in range(40) if attack.is_hostile(6, m, 40)]
    assert not any(dataclasses.replace(attack, kind="none").is_hostile(5, m, 40) for m in range(40))
    with pytest.raises(UserError, match=r"attack.share = 0.05 of 8 clients is nobody"):
        config(**{"attack.kind": "scale", "attack.share": 0.05})
    config(**{"attack.kind": "scale", "attack.share": 0})


@pytest.mark.parametrize("method", ["ho-sfl", "sflv2", "cse-fsl"])
def test_a_round_without_a_quorum_changes_no_client_model(method):
    def three_are_away_in_round_2(message, partition_id):
        is_round = message.metadata.group_id == "2" and "train" in message.metadata.message_type
        return "away" if is_round and partition_id < 3 else None

    keys = {"clients": 4, "rounds": 2, "quorum": 0.5}
    outcome = run(config(method, **keys), fault=three_are_away_in_round_2)
    assert outcome.events["empty_rounds"] == outcome.events["dropped_quorum"] == 1
    before = run(config(method, **keys | {"rounds": 1})).final_state
    client = [name for name in before if name.startswith("conv1")]
    assert client and all((before[name] == outcome.final_state[name]).all() for name in client)


def out_in(*rounds, but=()):
    """Return a fault: nobody but some clients is heard of in these rounds."""
    numbers = {str(t) for t in rounds}

    def power_is_out(message, partition_id):
        is_round = message.metadata.group_id in numbers and partition_id not in but
        return "the power is out" if is_round else None

    return power_is_out


@pytest.mark.parametrize(
    ("method", "lost_rounds"),
    [
        ("ho-sfl", (5, 6)),  # the last: nothing would be left to run
        ("ho-sfl", (3, 4)),
        ("ho-sfl", (1, 2)),  # nothing has counted yet
        ("sflv2", (5, 6)),
        ("cse-fsl", (5, 6)),
        ("decomfl", (1, 2)),
    ],
)
@pytest.mark.parametrize("storage", ["worker", "context"])
def test_a_run_that_lost_its_quorum_takes_the_lost_rounds_again(
    method, lost_rounds, storage, tmp_path
):
    """It ends with the model, and the evaluations, of a run without the outage."""
    settings = config(method, quorum_rounds=2, evaluate_every=2, replica_storage=storage)
    folder = tmp_path / "checkpoints"
    lost = run(settings, fault=out_in(*lost_rounds), checkpoints=Checkpoints(folder))
    assert lost.status == "failed" and "2 rounds in a row" in lost.error
    start = resumable(folder, settings)
    assert start.round == lost_rounds[0] - 1
    resumed, whole = run(settings, checkpoints=Checkpoints(folder, start)), run(settings)
    assert resumed.status == "completed", resumed.error
    assert resumed.rounds_completed == 6 and resumed.samples_seen == whole.samples_seen
    assert [row["round"] for row in resumed.rounds] == [0, 2, 4, 6]
    assert resumed.final_model_checksum == whole.final_model_checksum
    assert resumed.events.pop("dropped_clients") == resumed.events.pop("dropped_node") == 8
    for event in ("worker_refills", "lost_client_memories"):  # nor did they answer for deposits
        resumed.events.pop(event, None)
    assert resumed.events == {"empty_rounds": 2, "resumes": 1}


@pytest.mark.parametrize("storage", ["worker", "context"])
def test_rounds_in_which_some_answered_are_taken_again_too(storage, tmp_path):
    """Those did their work and remember it: no replica is wrong for it."""
    settings = config(quorum_rounds=2, quorum=1.0, cohort=8, replica_storage=storage)
    folder, fault = tmp_path / "checkpoints", out_in(5, 6, but=(0, 2, 3))
    lost = run(settings, fault=fault, checkpoints=Checkpoints(folder))
    assert lost.status == "failed" and lost.events["dropped_quorum"] == 6
    start = resumable(folder, settings)
    resumed = run(settings, checkpoints=Checkpoints(folder, start))
    assert resumed.status == "completed" and resumed.rounds[-1]["round"] == 6
    assert not resumed.events.keys() & {"resyncs", "unsynchronised_clients"}
    # And if the power is out once more, it has all its patience again.
    again = run(settings, fault=out_in(6), checkpoints=Checkpoints(folder, start))
    assert again.status == "completed" and again.events["empty_rounds"] == 3


@pytest.mark.parametrize("method", ["ho-sfl", "sflv2"])
def test_a_checkpoint_of_just_that_round_is_kept_and_later_ones_are_not(method, tmp_path):
    """Every round leaves one, the first of those that came to nothing included."""
    keys = {"quorum_rounds": 2, "quorum": 0.6, "cohort": 8, "replica_storage": "worker"}
    settings = config(method, checkpoint_every=1, **keys)
    folder = tmp_path / "checkpoints"
    fault = out_in(4, 5, but=range(4))
    lost = run(settings, fault=fault, checkpoints=Checkpoints(folder))
    assert lost.status == "failed"
    assert [path.name for path in find_checkpoints(folder)] == ["round-00000003"]
    resumed = run(settings, checkpoints=Checkpoints(folder, resumable(folder, settings)))
    whole = run(config(method, **keys))
    resumed.events.pop("worker_refills", None)
    assert resumed.events == {"resumes": 1}
    assert resumed.final_model_checksum == whole.final_model_checksum
    assert list(resumed.ledger) == list(whole.ledger)


SECRET = {"privacy.clip": 1.0, "privacy.noise": 0.1}


def test_with_secret_noise_a_lost_quorum_leaves_nothing_on_the_disk(tmp_path):
    """A checkpoint would hold what clients remember: smashed data before the noise."""

    def power_is_out(message, partition_id):
        return "the power is out" if message.metadata.group_id in {"4", "5"} else None

    folder = tmp_path / "checkpoints"
    for secret in (True, False):
        settings = config(quorum_rounds=2, **SECRET, **{"privacy.reproducible": not secret})
        lost = run(settings, fault=power_is_out, checkpoints=Checkpoints(folder))
        assert lost.status == "failed" and "2 rounds in a row" in lost.error
        assert ("no checkpoint is left" in lost.error) == secret
        assert folder.exists() != secret
    with pytest.raises(CheckpointError, match=r"with secret noise: .*privacy\.reproducible"):
        resumable(folder, config(quorum_rounds=2, **SECRET), or_previous=True)


@pytest.mark.parametrize(("is_reproducible", "deposits"), [(True, 4), (False, 0)])
def test_clients_with_secret_noise_hand_no_memory_over(is_reproducible, deposits):
    """Whatever the server asks: this one asks in the middle of a run."""
    seen = []

    class Curious:
        def on_set_up(self, federation):
            self.federation = federation

        def on_round(self, report):
            read = lambda _, blob: decode_as(blob, DepositReply)  # noqa: E731
            asked = dict.fromkeys(range(4), DepositRequest())
            replies = self.federation.exchange(asked, "deposit", report.round, read)
            seen.append(len(replies.records))
            reasons = {str(failure) for failure in replies.failures.values()}
            assert all("smashed data without noise" in reason for reason in reasons)
            return True

    settings = config(clients=4, cohort=4, **SECRET, **{"privacy.reproducible": is_reproducible})
    workload = settings.workload()
    task = workload.load_task()
    model = workload.build_model(task)
    strategy = HOSFL(
        model,
        task.loss,
        settings.method_config(),
        deployment=Deployment(num_clients=4, workload=workload.describing(task).to_dict()),
        observers=[Curious()],
    )
    grid = InProcessGrid(task_client_app(), 4)
    strategy.start(grid, strategy.initial_arrays(), num_rounds=1)
    assert seen == [deposits]
    if not is_reproducible:
        with pytest.raises(UserError, match="without noise"):
            strategy.run_state()


@pytest.mark.parametrize("method", ["ho-sfl", "sflv1", "fedavg"])
def test_rounds_with_too_few_answers_for_the_rule_are_counted(method):
    def most_are_away(message, partition_id):
        is_round = message.metadata.group_id in {"2", "3"}
        return "away" if is_round and partition_id > 1 else None

    keys = {"clients": 4, "cohort": 4, "rounds": 3}
    for rule, times in (("median", 2), ("mean", 0)):
        outcome = run(config(method, **keys, **{"robust.rule": rule}), fault=most_are_away)
        assert outcome.status == "completed", outcome.error
        assert outcome.events.get("too_few_for_rule", 0) == times
