"""Replicas equal the mirror after any pattern of participation, through the encoded bytes."""

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leansplit.costs import CatchUpSizes, SplitShape, ho_sfl_traffic
from leansplit.federated import (
    CATCH_UPS,
    NEVER,
    Attendance,
    OptimizerConfig,
    Replica,
    Update,
    UpdateLog,
)
from leansplit.state import apart, together
from leansplit.wire import ForwardRequest, SyncRequest, decode_as, encode, price
from leansplit.zeroth_order import ZerothOrderConfig

OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.05),
    "sgd-decay": OptimizerConfig(lr=0.05, weight_decay=0.01),
    "momentum": OptimizerConfig(lr=0.05, momentum=0.9),
    "momentum-round": OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=0.1, lifetime="round"),
    "adamw": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
    "adamw-round": OptimizerConfig(name="adamw", lr=0.01, lifetime="round"),
}
P, D = 2, 7
ZO = ZerothOrderConfig(num_perturbations=P, perturbation_scale=1e-2)
POOLED = ZerothOrderConfig(num_perturbations=P, perturbation_scale=1e-2, seed_pool=5)
ROOT_SEED = 3


def initial():
    return {"w": torch.linspace(-1, 1, 5), "b": torch.tensor([[0.5, -2.0]])}


class Client:
    """The client's rule (clients/replicas.py) without Flower: a replica and the last seeds."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.replica = None
        self.seeds = {}

    def answer(self, blob):
        request = decode_as(blob, (ForwardRequest, SyncRequest))
        version = self.replica.version if self.replica else NEVER
        if request.is_resync or request.weights_version > max(version, 0):
            self.replica = Replica.from_state(
                request.weights, self.optimizer, ZO, version=request.weights_version
            )
        elif request.weights_version == 0 and self.replica is None:
            self.replica = Replica(request.weights, self.optimizer, ZO)
        known = self.seeds[request.known_round] if request.known_round >= 0 else ()
        assert self.replica.version >= request.base_version
        self.replica.catch_up_(request.updates(known, POOLED.pool(ROOT_SEED)))
        assert self.replica.version == request.target_version
        return self.replica.checksum

    def probe(self, round, seeds):
        self.seeds = {round: seeds}  # of the last round that it answered, no other


class Federation:
    """The server's rule (strategies/ho_sfl.py) without Flower."""

    def __init__(self, optimizer, num_clients, catch_up="log", zeroth_order=ZO):
        self.mirror = Replica(initial(), optimizer, zeroth_order)
        self.zeroth_order = zeroth_order
        self.attendance = Attendance(self.mirror, catch_up, zeroth_order.pool(ROOT_SEED))
        self.log = UpdateLog()  # of all rounds
        self.clients = [Client(optimizer) for _ in range(num_clients)]
        self.downlink = Counter()

    def send(self, m, request_type, round, *, is_confirmed=True):
        blob = encode(request_type(round=round, **self.attendance.catch_up(m, self.mirror)))
        self.downlink += Counter(price(blob))
        checksum = self.clients[m].answer(blob)
        assert checksum == self.mirror.checksum
        if is_confirmed:
            self.attendance.confirm(m)

    def round(self, round, cohort, *, answered=None, unheard=(), makes_update=True):
        """``answered``: whose probe reply arrived; ``unheard``: not even the smashed data did."""
        answered = cohort if answered is None else answered
        for m in sorted(unheard):
            self.send(m, ForwardRequest, round, is_confirmed=False)
        for m in sorted(cohort):
            self.send(m, ForwardRequest, round)
        seeds = self.zeroth_order.shared_seeds(ROOT_SEED, round=round)
        for m in sorted(cohort):
            self.clients[m].probe(round, seeds)  # even if its reply is lost on the way
        if answered and makes_update:
            generator = torch.Generator().manual_seed(round)
            scalars = tuple(torch.randn(P, generator=generator).tolist())
            self.mirror.apply_(Update(round, seeds, scalars))
            self.log.append(Update(round, seeds, scalars))
            self.attendance.append(Update(round, seeds, scalars), len(self.clients))
            for m in sorted(answered):
                self.attendance.confirm_seeds(m, round)

    def go_on_from_its_state(self):
        before = self.attendance
        pool = self.zeroth_order.pool(ROOT_SEED)
        at_first = Replica(initial(), self.mirror._config, self.zeroth_order)
        self.attendance = Attendance(at_first, before._catch_up, pool)
        self.attendance.load_state_(together(*apart(before.state())))

    def synchronise(self, round):
        for m in self.attendance.participants:
            self.send(m, SyncRequest, round)


CELLS = st.sampled_from(["away", "takes part", "loses its probe reply", "loses every reply"])


def who(cells, *cell):
    return {m for m, c in enumerate(cells) if c in cell}


@settings(max_examples=250)
@given(
    data=st.data(),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    catch_up=st.sampled_from(CATCH_UPS),
    zeroth_order=st.sampled_from([ZO, POOLED]),
    is_resumed=st.booleans(),
)
def test_replicas_are_exact_after_any_pattern_of_participation(
    data, optimizer, catch_up, zeroth_order, is_resumed
):
    """However clients catch up, they end with the bits of one that was never absent."""
    num_clients = data.draw(st.integers(1, 6))
    rounds = data.draw(
        st.lists(
            st.tuples(
                st.lists(CELLS, min_size=num_clients, max_size=num_clients),
                st.sampled_from([True, True, True, False]),  # makes an update
            ),
            max_size=12,
        )
    )
    federation = Federation(OPTIMIZERS[optimizer], num_clients, catch_up, zeroth_order)
    for t, (cells, makes_update) in enumerate(rounds, start=1):
        federation.round(
            t,
            who(cells, "takes part", "loses its probe reply"),
            answered=who(cells, "takes part"),
            unheard=who(cells, "loses every reply"),
            makes_update=makes_update,
        )
        if is_resumed:
            federation.go_on_from_its_state()
    federation.synchronise(len(rounds) + 1)

    took_part = set()
    for cells, _ in rounds:
        took_part |= who(cells, "takes part", "loses its probe reply")
    assert federation.attendance.participants == sorted(took_part)
    # An oracle that was never absent and never encoded anything.
    oracle = Replica(initial(), OPTIMIZERS[optimizer], ZO)
    for update in federation.log:
        oracle.apply_(update)
    assert federation.mirror.checksum == oracle.checksum
    for m, client in enumerate(federation.clients):
        if m in took_part:
            assert client.replica.checksum == oracle.checksum
            assert client.replica.version == oracle.version
            assert federation.attendance.version(m) == oracle.version
        else:
            assert federation.attendance.version(m) == NEVER


@settings(max_examples=60)
@given(
    st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=8),
    st.sampled_from(["sgd", "momentum", "adamw", "adamw-round"]),
    st.sampled_from(CATCH_UPS),
    st.sampled_from([ZO, POOLED]),
)
def test_catch_up_traffic_equals_the_closed_formula(attendance, optimizer, catch_up, zeroth_order):
    federation = Federation(OPTIMIZERS[optimizer], 5, catch_up, zeroth_order)
    for t, cohort in enumerate(attendance, start=1):
        federation.round(t, cohort)
    federation.synchronise(len(attendance) + 1)
    shape = SplitShape(smashed_elements=1, client_elements=D)
    sizes = CatchUpSizes(
        choice=catch_up,
        seed_bytes=1 if zeroth_order is POOLED else 4,
        moment_bytes=OPTIMIZERS[optimizer].kept_bytes(D),
    )
    traffic = ho_sfl_traffic(shape, attendance, 1, P, sizes)
    for kind in ("scalars", "catch_up", "weights"):
        assert federation.downlink[kind] == traffic.get(("downlink", kind), 0), kind
    assert federation.downlink["seeds"] == 0  # they travel with the probes


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("zeroth_order", [ZO, POOLED], ids=["fresh", "pooled"])
def test_a_client_absent_for_300_rounds_catches_up_to_identical_bits(optimizer, zeroth_order):
    federation = Federation(OPTIMIZERS[optimizer], 3, "log", zeroth_order)
    federation.round(1, {0, 1})
    for t in range(2, 302):
        federation.round(t, {1})
    federation.round(302, {0, 1, 2})  # 0 returns and 2 joins
    federation.synchronise(303)
    sums = {client.replica.checksum for client in federation.clients}
    assert sums == {federation.mirror.checksum}
    assert federation.mirror.version == 302


@settings(max_examples=40)
@given(
    st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=12),
    st.sampled_from(["sgd", "adamw"]),
    st.sampled_from([ZO, POOLED]),
)
def test_the_log_never_outgrows_a_snapshot(attendance, optimizer, zeroth_order):
    federation = Federation(OPTIMIZERS[optimizer], 5, "auto", zeroth_order)
    seed_bytes = 1 if zeroth_order is POOLED else 4
    for t, cohort in enumerate(attendance, start=1):
        federation.round(t, cohort)
        log_bytes = len(federation.attendance.log) * P * (seed_bytes + 4)
        assert log_bytes <= federation.mirror.snapshot_bytes + P * seed_bytes


@pytest.mark.parametrize(("catch_up", "kept"), [("log", 30), ("snapshot", 1)])
def test_how_much_of_the_log_is_kept(catch_up, kept):
    federation = Federation(OPTIMIZERS["sgd"], 2, catch_up)
    for t in range(1, 31):
        federation.round(t, {0})
    assert len(federation.attendance.log) == kept  # client 1 may still join
    federation.round(31, {0, 1})
    for t in range(32, 62):
        federation.round(t, {0, 1})
    assert len(federation.attendance.log) == 1  # everyone is past the others
    federation.synchronise(62)


def test_places_that_are_not_in_the_pool_are_refused():
    federation = Federation(OPTIMIZERS["sgd"], 2, "log", POOLED)
    federation.round(1, {0})
    request = ForwardRequest(round=2, **federation.attendance.catch_up(1, federation.mirror))
    assert len(request.updates((), POOLED.pool(ROOT_SEED))) == 1
    with pytest.raises(ValueError, match="is not in a seed pool of 1"):
        dataclasses.replace(request, missed_places=torch.tensor([[0, 4]])).updates((), (7,))


def test_what_each_kind_of_client_is_sent():
    mirror = Replica(initial(), OPTIMIZERS["sgd"], ZO)
    attendance = Attendance(mirror, "log")
    updates = [Update(t, (10 * t, 10 * t + 1), (0.5 * t, -1.0)) for t in (1, 3, 4)]

    first = attendance.catch_up(0, mirror)
    assert first.keys() == {"target_version", "base_version", "weights", "weights_version"}
    assert first["weights"].keys() == initial().keys()
    assert (first["target_version"], first["base_version"], first["weights_version"]) == (0, 0, 0)
    attendance.confirm(0)
    assert attendance.catch_up(0, mirror) == {"target_version": 0, "base_version": 0}  # up to date

    attendance.append(updates[0], 9)
    attendance.confirm_seeds(0, 1)
    known = attendance.catch_up(0, mirror)  # it holds the seeds: P scalars are enough
    assert known.pop("scalars").tolist() == [0.5, -1.0]
    assert known == {"target_version": 1, "base_version": 0, "known_round": 1}

    attendance.append(updates[1], 9)
    attendance.append(updates[2], 9)
    late = attendance.catch_up(0, mirror)
    assert late["known_round"] == 1 and late["target_version"] == 4
    assert late["missed_rounds"] == [3, 4]
    assert late["missed_seeds"].tolist() == [[30, 31], [40, 41]]
    assert late["missed_seeds"].dtype == torch.uint32
    assert late["missed_scalars"].tolist() == [[1.5, -1.0], [2.0, -1.0]]
    assert late["missed_scalars"].dtype == torch.float32

    joins = attendance.catch_up(1, mirror)
    assert joins["weights_version"] == 0 and joins["missed_rounds"] == [1, 3, 4]
    assert attendance.participants == [0]


def test_seeds_of_a_round_without_an_update_are_no_use():
    mirror = Replica(initial(), OPTIMIZERS["sgd"], ZO)
    attendance = Attendance(mirror, "log")
    attendance.confirm(0)
    attendance.confirm_seeds(0, 1)  # round 1 came to nothing
    attendance.append(Update(2, (1, 2), (0.5, 0.5)), 9)
    fields = attendance.catch_up(0, mirror)
    assert "known_round" not in fields and fields["missed_rounds"] == [2]


def test_replay_from_any_version_reaches_the_newest():
    optimizer = OPTIMIZERS["adamw"]
    federation = Federation(optimizer, 2)  # one of them may still join, so all rounds are kept
    for t in range(1, 7):
        federation.round(t, {0})
    whole = federation.attendance.replay_from(NEVER, federation.mirror)
    assert whole["weights_version"] == 0 and whole["missed_rounds"] == [1, 2, 3, 4, 5, 6]
    for version in (NEVER, 0, 1, 4, 6):
        client = Client(optimizer)
        if version != NEVER:
            client.replica = Replica(initial(), optimizer, ZO)
            client.replica.catch_up_([u for u in federation.log if u.round <= version])
        request = ForwardRequest(
            round=9, **federation.attendance.replay_from(version, federation.mirror)
        )
        assert "known_round" not in federation.attendance.replay_from(version, federation.mirror)
        assert client.answer(encode(request)) == federation.mirror.checksum


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("rounds", [0, 4])
def test_a_snapshot_mends_a_replica_that_differs(optimizer, rounds):
    federation = Federation(optimizer, 2)
    for t in range(1, rounds + 1):
        federation.round(t, {0, 1})
    federation.round(rounds + 1, {0, 1}, makes_update=False)  # so that everyone is up to date
    broken = federation.clients[0]
    damaged = broken.replica.state()
    damaged["parameters.w"][3] += 1e-3
    broken.replica = Replica.from_state(damaged, optimizer, ZO, version=rounds)
    assert broken.replica.checksum != federation.mirror.checksum
    fields = federation.attendance.snapshot(federation.mirror, is_resync=True)
    assert broken.answer(encode(ForwardRequest(round=9, **fields))) == federation.mirror.checksum
    # From then on it takes part as before.
    for t in range(10, 13):
        federation.round(t, {0, 1})
    federation.synchronise(13)
    assert broken.replica.checksum == federation.mirror.checksum


def test_the_initial_parameters_are_kept_from_later_changes():
    mirror = Replica(initial(), OPTIMIZERS["sgd"], ZO)
    attendance = Attendance(mirror)
    mirror.vector.fill_(9)
    assert torch.equal(attendance.catch_up(0, mirror)["weights"]["w"], initial()["w"])
