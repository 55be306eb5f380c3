import pytest

from leansplit.costs import (
    SplitShape,
    fedavg_traffic,
    frozen_traffic,
    ho_fl_traffic,
    ho_sfl_traffic,
    splitfed_traffic,
    zo_split_traffic,
)

SHAPE = SplitShape(smashed_elements=64, labels_per_sample=1, client_elements=100, full_elements=900)
UP, DOWN = "uplink", "downlink"

# Three rounds of two, one and two clients; client 3 never takes part.
ATTENDANCE = [{0, 1}, {1}, {0, 2}]
SAMPLES = 5 * 8


def test_ho_sfl_by_hand():
    traffic = ho_sfl_traffic(SHAPE, ATTENDANCE, SAMPLES, num_perturbations=10)
    assert traffic == {
        (UP, "smashed_data"): 40 * 64 * 4,
        (UP, "labels"): 40 * 8,
        (DOWN, "smashed_gradient"): 40 * 64 * 4,
        (DOWN, "seeds"): 5 * 10 * 4,  # five participations
        (UP, "scalars"): 5 * 10 * 4,
        (DOWN, "scalars"): 5 * 10 * 4,
        # missed: client 0 round 2, client 1 round 3, client 2 rounds 1 and 2
        (DOWN, "catch_up"): 4 * 10 * 8,
        (DOWN, "weights"): 3 * 100 * 4,  # the initial client model, once each
    }


def test_ho_sfl_down_is_8_p_bytes_for_each_participant_and_round():
    for attendance in (ATTENDANCE, [{0}], [{0}, {1}, {2}, {3}], [{0, 1, 2}] * 5):
        traffic = ho_sfl_traffic(SHAPE, attendance, 8, num_perturbations=7)
        down = sum(traffic.get((DOWN, kind), 0) for kind in ("seeds", "scalars", "catch_up"))
        participants = len(set().union(*attendance))
        assert down == 8 * 7 * participants * len(attendance)


def test_full_attendance_needs_no_catch_up():
    traffic = ho_sfl_traffic(SHAPE, [{0, 1}] * 4, 64, num_perturbations=3)
    assert (DOWN, "catch_up") not in traffic


def test_splitfed_by_hand():
    assert splitfed_traffic(SHAPE, ATTENDANCE, SAMPLES) == {
        (UP, "smashed_data"): 40 * 64 * 4,
        (UP, "labels"): 40 * 8,
        (DOWN, "smashed_gradient"): 40 * 64 * 4,
        (DOWN, "weights"): 5 * 100 * 4,
        (UP, "weights"): 5 * 100 * 4,
    }


@pytest.mark.parametrize(("p", "activations"), [(1, 3), (1, 2), (4, 9), (4, 8), (4, 5)])
def test_zo_split_by_hand(p, activations):
    traffic = zo_split_traffic(
        SHAPE,
        ATTENDANCE,
        2 * SAMPLES,
        num_perturbations=p,
        num_activations=activations,
        local_steps=2,
    )
    assert traffic == {
        (UP, "smashed_data"): activations * 80 * 64 * 4,
        (UP, "labels"): 80 * 8,
        (DOWN, "scalars"): 5 * 2 * p * 4,
        (DOWN, "weights"): 5 * 100 * 4,
        (UP, "weights"): 5 * 100 * 4,
    }


def test_fedavg_by_hand():
    assert fedavg_traffic(SHAPE, ATTENDANCE) == {
        (DOWN, "weights"): 5 * 900 * 4,
        (UP, "weights"): 5 * 900 * 4,
    }


def test_frozen_by_hand():
    assert frozen_traffic(SHAPE, ATTENDANCE, SAMPLES) == {
        (UP, "smashed_data"): 40 * 64 * 4,
        (UP, "labels"): 40 * 8,
        (DOWN, "weights"): 3 * 100 * 4,
    }


def test_ho_fl_by_hand():
    shape = SplitShape(smashed_elements=1, full_elements=900, zeroth_elements=(0, 100, 900))
    assert ho_fl_traffic(shape, ATTENDANCE, local_steps=3, num_perturbations=2) == {
        (DOWN, "weights"): 5 * 900 * 4,
        # clients 1 and 2 have a zeroth-order segment: two participations and one
        (DOWN, "seeds"): 3 * 3 * 2 * 4,
        (UP, "scalars"): 3 * 3 * 2 * 4,
        # client 0 twice all, client 1 twice without its lower 100, client 2 nothing
        (UP, "weights"): (2 * 900 + 2 * 800) * 4,
    }


def test_ho_fl_without_zeroth_order_segments_costs_what_fedavg_costs():
    shape = SplitShape(smashed_elements=1, full_elements=900, zeroth_elements=(0, 0, 0))
    assert ho_fl_traffic(shape, ATTENDANCE, 3, 2) == fedavg_traffic(shape, ATTENDANCE)


def test_sequences_carry_a_label_for_each_position():
    shape = SplitShape(smashed_elements=32 * 768, labels_per_sample=32, client_elements=1)
    for traffic in (
        ho_sfl_traffic(shape, [{0}], 4, num_perturbations=1),
        splitfed_traffic(shape, [{0}], 4),
        frozen_traffic(shape, [{0}], 4),
    ):
        assert traffic[UP, "labels"] == 4 * 32 * 8
        assert traffic[UP, "smashed_data"] == 4 * 32 * 768 * 4


def test_a_client_model_without_parameters_sends_no_weights():
    shape = SplitShape(smashed_elements=8)
    for traffic in (
        ho_sfl_traffic(shape, ATTENDANCE, SAMPLES, num_perturbations=2),
        splitfed_traffic(shape, ATTENDANCE, SAMPLES),
        frozen_traffic(shape, ATTENDANCE, SAMPLES),
    ):
        assert not [kind for _, kind in traffic if kind == "weights"]
        assert 0 not in traffic.values()


@pytest.mark.parametrize("formula", [splitfed_traffic, frozen_traffic])
def test_a_run_in_which_nobody_took_part_costs_nothing(formula):
    assert formula(SHAPE, [], 0) == {}
    assert ho_sfl_traffic(SHAPE, [], 0, num_perturbations=5) == {}
    assert sum(fedavg_traffic(SHAPE, []).values()) == 0
