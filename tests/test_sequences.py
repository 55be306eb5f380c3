"""Batches of sequences: joined, taken apart, trimmed, and their masks carried along."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.sequences import IGNORED, join, pack, part, trim, unpack


def test_the_mask_survives_packing():
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        packed = pack(hidden.to(dtype), mask)
        assert packed.shape == (2, 3, 5) and packed.dtype == dtype
        again, found = unpack(packed)
        assert torch.equal(again, hidden.to(dtype)) and torch.equal(found, mask)
        assert again.is_contiguous()


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=5))
def test_joined_batches_come_apart_again(sizes):
    batches = [torch.rand(rows, length, 3) + 1 for rows, length in sizes]
    joint = join(batches)
    assert joint.shape == (sum(r for r, _ in sizes), max(length for _, length in sizes), 3)
    for own, batch in zip(part(joint, batches), batches, strict=True):
        assert torch.equal(own, batch)
    filled = sum(batch.sum() for batch in batches)
    torch.testing.assert_close(joint.sum(), filled)  # padding is zero


def test_batches_of_one_shape_are_concatenated_as_they_are():
    batches = [torch.randn(2, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    assert torch.equal(join(batches), torch.cat(batches))
    assert join(batches[:1]) is batches[0]


def test_labels_are_filled_up_with_what_the_loss_leaves_out():
    joint = join([torch.tensor([[1, 2, 3]]), torch.tensor([[4]])])
    assert joint.tolist() == [[1, 2, 3], [4, IGNORED, IGNORED]]


def tokens(*masks):
    mask = torch.tensor(masks)
    return torch.stack([torch.arange(mask.numel()).reshape(mask.shape), mask], 1)


def test_positions_that_are_padding_in_every_row_are_dropped():
    inputs = tokens([0, 1, 1, 0, 0], [0, 0, 1, 1, 0])
    labels = torch.arange(10).reshape(2, 5)
    kept, of_positions = trim(inputs, labels)
    assert torch.equal(kept, inputs[:, :, 1:4]) and torch.equal(of_positions, labels[:, 1:4])
    assert torch.equal(trim(inputs, torch.tensor([3, 4]))[1], torch.tensor([3, 4]))


@pytest.mark.parametrize(
    "inputs",
    [torch.zeros(2, 2, 3), torch.zeros(2, 3, 8, 8), tokens([0, 0], [0, 0])],
    ids=["floats", "images", "nothing but padding"],
)
def test_what_cannot_be_trimmed_stays_as_it_is(inputs):
    labels = torch.zeros(2, dtype=torch.int64)
    assert trim(inputs, labels)[0] is inputs
