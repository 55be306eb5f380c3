import pytest

from leansplit.costs import (
    SplitShape,
    decomfl_traffic,
    fedavg_traffic,
    fedzo_traffic,
    ho_sfl_traffic,
    hosl_traffic,
)

SHAPE = SplitShape(smashed_elements=64, client_elements=100, full_elements=900)
UP, DOWN = "uplink", "downlink"

# Three rounds of two, one and two clients; client 3 never takes part.
ATTENDANCE = [{0, 1}, {1}, {0, 2}]
SAMPLES = 5 * 8


@pytest.mark.parametrize(("per_direction", "uploads"), [(1, 11), (2, 21)])
def test_hosl_by_hand(per_direction, uploads):
    traffic = hosl_traffic(SHAPE, ATTENDANCE, SAMPLES, 10, per_direction)
    assert traffic == {
        (UP, "smashed_data"): 40 * uploads * 64 * 4,
        (UP, "labels"): 40 * 8,
        (DOWN, "seeds"): 5 * 10 * 4,
        (DOWN, "scalars"): 5 * 10 * 4,
        (DOWN, "catch_up"): 4 * 10 * 8,
        (DOWN, "weights"): 3 * 100 * 4,
    }


def test_decomfl_by_hand():
    assert decomfl_traffic(SHAPE, ATTENDANCE, num_perturbations=5, local_steps=3) == {
        (UP, "scalars"): 5 * 15 * 4,
        (DOWN, "seeds"): 5 * 15 * 4,
        (DOWN, "scalars"): 5 * 15 * 4,
        (DOWN, "catch_up"): 4 * 15 * 8,
        (DOWN, "weights"): 3 * 900 * 4,
    }


def test_decomfl_depends_on_the_model_only_through_its_first_download():
    larger = SplitShape(smashed_elements=64, client_elements=100, full_elements=90_000)
    small, large = (decomfl_traffic(shape, ATTENDANCE, 5, 1) for shape in (SHAPE, larger))
    assert {key for key in small if small[key] != large[key]} == {(DOWN, "weights")}


def test_fedzo_costs_what_fedavg_costs():
    assert fedzo_traffic(SHAPE, ATTENDANCE) == fedavg_traffic(SHAPE, ATTENDANCE)
    assert fedzo_traffic(SHAPE, []) == {}


def test_replicas_cost_hosl_what_they_cost_ho_sfl():
    ours = hosl_traffic(SHAPE, ATTENDANCE, SAMPLES, 7, 2)
    theirs = ho_sfl_traffic(SHAPE, ATTENDANCE, SAMPLES, 7)
    for kind in ("seeds", "scalars", "catch_up", "weights"):
        assert ours[DOWN, kind] == theirs[DOWN, kind]
    assert (UP, "scalars") not in ours and (DOWN, "smashed_gradient") not in ours


def test_a_run_in_which_nobody_took_part_costs_nothing():
    assert hosl_traffic(SHAPE, [], 0, 5, 2) == decomfl_traffic(SHAPE, [], 5, 1) == {}
