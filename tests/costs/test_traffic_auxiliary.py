import pytest
import torch

from leansplit.costs import SplitShape, count_flops, fsl_sage_traffic, local_loss_traffic
from leansplit.federated import CSEFSLConfig, HeronSFLConfig
from leansplit.models import build_model, split_at
from leansplit.server_app.methods import METHODS
from leansplit.tasks.task import cross_entropy

SHAPE = SplitShape(smashed_elements=64, client_elements=100, auxiliary_elements=30)
UP, DOWN = "uplink", "downlink"
ATTENDANCE = [{0, 1}, {1}, {0, 2}]  # five participations


@pytest.mark.parametrize(
    ("steps", "period", "uploads"), [(1, 5, 1), (5, 5, 1), (6, 5, 2), (3, 1, 3)]
)
def test_local_loss_by_hand(steps, period, uploads):
    samples = 5 * 8 * steps
    traffic = local_loss_traffic(
        SHAPE, ATTENDANCE, samples, local_steps=steps, upload_period=period
    )
    assert traffic == {
        (UP, "smashed_data"): 5 * 8 * uploads * 64 * 4,
        (UP, "labels"): 5 * 8 * uploads * 8,
        (DOWN, "weights"): 5 * 130 * 4,
        (UP, "weights"): 5 * 130 * 4,
    }


def test_a_frozen_client_model_crosses_once_for_each_client():
    traffic = local_loss_traffic(
        SHAPE, ATTENDANCE, 5 * 8, local_steps=1, upload_period=1, frozen_client=True
    )
    assert traffic[DOWN, "weights"] == (3 * 100 + 5 * 30) * 4
    assert traffic[UP, "weights"] == 5 * 30 * 4


@pytest.mark.parametrize(
    ("attendance", "period", "num_heads"),
    [
        (ATTENDANCE, 10, 3 + 2),  # first times, and the second times of 0 and 1
        ([{0}] * 6, 1, 6),
        ([{0}] * 6, 2, 1 + 3),  # rounds 1; 2, 4, 6
        ([{0}] * 6, 10, 1 + 1),
        ([{0}, set(), {0}, {0}, set(), {0}], 3, 1 + 2),  # rounds 1; 3, 6
    ],
)
def test_fsl_sage_sends_a_head_when_it_is_new(attendance, period, num_heads):
    traffic = fsl_sage_traffic(
        SHAPE, attendance, 8, local_steps=1, upload_period=1, alignment_period=period
    )
    participations = sum(map(len, attendance))
    assert traffic[DOWN, "weights"] == (participations * 100 + num_heads * 30) * 4
    assert traffic[UP, "weights"] == participations * 100 * 4


def test_a_run_in_which_nobody_took_part_costs_nothing():
    assert local_loss_traffic(SHAPE, [], 0, local_steps=2, upload_period=1) == {}
    sage = {"local_steps": 2, "upload_period": 1, "alignment_period": 3}
    assert fsl_sage_traffic(SHAPE, [], 0, **sage) == {}


def test_herons_published_communication_for_one_epoch():
    """Table II of arXiv 2601.09076: 20 epochs of 5 clients move 244.19 GiB, heads not counted."""
    shape = SplitShape(smashed_elements=64 * 32 * 32, client_elements=75_840)
    traffic = local_loss_traffic(
        shape, [set(range(5))] * 20, 20 * 50_000, local_steps=1, upload_period=1
    )
    without_labels = sum(v for (_, kind), v in traffic.items() if kind != "labels")
    assert round(without_labels / 2**30, 2) == 244.20


def test_herons_published_flops():
    """Table II again: 39.90 G multiply-accumulates for 256 samples, two forward passes."""
    model = build_model("resnet18", input_shape=(3, 32, 32), num_classes=10, seed=0)
    cut = split_at(model, "layer1.0")
    macs = 1_769_472 + 2 * 37_748_736 + 655_360  # stem, block, fully connected head
    x, y = torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    heron = METHODS["heron-sfl"].client_step(
        HeronSFLConfig(cohort_size=1), cut, cross_entropy, x, y
    )
    assert count_flops(heron) == 2 * 2 * 2 * macs
    assert round(256 * 2 * macs / 1e9, 2) == 39.90
    frozen = HeronSFLConfig(cohort_size=1, frozen_client=True)
    step = METHODS["heron-sfl"].client_step(frozen, cut, cross_entropy, x, y)
    assert count_flops(step) == 2 * 2 * (macs + 655_360)  # one pass, and a probe of the head
    cse = METHODS["cse-fsl"].client_step(CSEFSLConfig(cohort_size=1), cut, cross_entropy, x, y)
    assert count_flops(cse) == 2 * 2 * (3 * macs - 1_769_472)  # no gradient of the images
