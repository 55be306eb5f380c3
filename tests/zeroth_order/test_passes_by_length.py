"""Rows of many batches in order of their length: what each gives by itself, with less padding."""

from itertools import pairwise

import pytest
import torch

from leansplit.costs import peak_tensor_bytes
from leansplit.noise import torch_seeded
from leansplit.zeroth_order import JointPasses, passes_by_length, run_by_length

DEVICE = torch.device("cpu")


def tokens(*rows, length=None):
    """Return a batch of rows, each a list of ids in which 0 is padding."""
    length = length or max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return torch.stack([ids, (ids > 0).long()], dim=1)


def running_sums(batch):
    """A function of each position and what stands before it, of width 2; garbage at padding."""
    ids = batch[:, 0].double()
    sums = ids.cumsum(1) + ids.shape[1] * (batch[:, 1] == 0)
    return torch.stack([sums, batch[:, 1].double()], dim=-1)


def last_sums(batch):
    return (batch[:, 0] * batch[:, 1]).sum(1, keepdim=True).double() * torch.ones(3)


def random_batches(sizes, longest=9):
    with torch_seeded(0):
        batches = []
        for size in sizes:
            lengths = torch.randint(1, longest + 1, (size,)).tolist()
            batches.append(tokens(*(torch.randint(1, 50, (n,)).tolist() for n in lengths)))
        return batches


class Counted:
    def __init__(self, forward):
        self.forward, self.shapes = forward, []

    def __call__(self, batch):
        self.shapes.append((len(batch), batch.shape[2]))
        return self.forward(batch)


@pytest.mark.parametrize("sizes", [(1,), (4, 4, 4), (3, 1, 7, 2)])
def test_every_position_with_a_token_has_its_value(sizes):
    batches = random_batches(sizes)
    found = list(run_by_length(running_sums, batches))
    assert [z.shape for z in found] == [(len(b), b.shape[2], 2) for b in batches]
    for z, batch in zip(found, batches, strict=True):
        is_token = batch[:, 1] > 0
        assert torch.equal(z[is_token], running_sums(batch)[is_token])
        assert not z[..., 1][~is_token].any()
        assert z.is_contiguous()


def test_outputs_of_rows():
    batches = random_batches((3, 4))
    for found, batch in zip(run_by_length(last_sums, batches), batches, strict=True):
        assert torch.equal(found, last_sums(batch))


def test_rows_are_sorted_and_passes_bounded(monkeypatch):
    monkeypatch.setattr(passes_by_length, "_PASS_POSITIONS", 12)
    counted = Counted(running_sums)
    batches = [tokens([1], [1] * 6, length=9), tokens([1, 1], [1] * 20), tokens([1] * 3)]
    list(run_by_length(counted, batches))
    assert counted.shapes == [(3, 3), (1, 6), (1, 20)]  # one row may be longer than a pass


def test_half_of_the_positions_go():
    """Lengths as of SST-2: most are short and some are not."""
    with torch_seeded(1):
        lengths = [max(1, int(n)) for n in torch.distributions.Exponential(0.1).sample((400,))]
    rows = [tokens([1] * n) for n in lengths]
    batches = [
        torch.cat([torch.nn.functional.pad(r, (0, longest - r.shape[2])) for r in some])
        for at in range(0, 400, 8)
        for some in [rows[at : at + 8]]
        for longest in [max(r.shape[2] for r in some)]
    ]
    counted = Counted(running_sums)
    list(run_by_length(counted, batches))
    before = sum(len(b) * b.shape[2] for b in batches)
    after = sum(rows * length for rows, length in counted.shapes)
    assert after < 0.5 * before and after < 1.25 * sum(lengths)
    assert len(counted.shapes) < len(batches)


def test_padding_in_front_stays():
    batch = tokens([5, 6, 7], [8]).flip(2)  # the second row is 0 0 8
    counted = Counted(running_sums)
    [found] = run_by_length(counted, [batch])
    assert counted.shapes == [(2, 3)] and torch.equal(found, running_sums(batch))


def test_rows_without_tokens():
    batch = torch.zeros(2, 2, 4, dtype=torch.int64)
    [found] = run_by_length(running_sums, [batch])
    assert found.shape == (2, 4, 2) and not found[..., 1].any()


def test_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr(passes_by_length, "_HELD_POSITIONS", 30)
    batches = random_batches((2, 2, 2, 2, 2, 2))
    counted = Counted(running_sums)
    outputs = run_by_length(counted, batches)
    next(outputs)
    ran = sum(rows for rows, _ in counted.shapes)
    assert 2 <= ran < 12
    assert len([*outputs]) == 5


def test_memory_is_bounded_where_one_row_is_far_longer_than_others(monkeypatch):
    monkeypatch.setattr(passes_by_length, "_HELD_POSITIONS", 2**10)
    batches = [tokens([1] * 4, [1] * 4) for _ in range(200)]
    batches[100] = tokens([1] * 256)
    width = 64

    def wide(batch):
        return batch[:, 0].float().unsqueeze(-1) * torch.ones(width)

    def run():
        for _ in run_by_length(wide, batches):
            pass

    assert sum(b[:, 0].numel() for b in batches) > 2**10
    held = 4 * width * 2**10
    assert peak_tensor_bytes(run) < 4 * held  # with all rows as long as the longest far more


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_what_is_held_is_cut_into_several_passes(device_type):
    """One pass of it all would pad every row to the longest."""
    lengths = sorted([8] * 3968 + [512] * 2)
    cuts = passes_by_length._cuts(lengths, torch.device(device_type))
    ran = sum((b - a) * lengths[b - 1] for a, b in pairwise(cuts))
    assert len(cuts) > 3 and ran < 1.3 * sum(lengths)


def test_no_batches():
    assert list(run_by_length(running_sums, [])) == []


def test_only_joined_passes_that_are_on_sort():
    short, long = tokens([1, 2]), tokens([1, 2, 3])
    for mode, together in (("on", True), ("auto", False), ("off", False)):
        passes = JointPasses(mode)
        assert (passes.alike(short) == passes.alike(long)) == together
        assert passes.alike(short) == passes.alike(tokens([3, 4]))
    images = [torch.zeros(2, 3), torch.zeros(4, 3)]
    assert JointPasses("on").alike(images[0]) != JointPasses("on").alike(images[1])
    counted = Counted(running_sums)
    found = list(JointPasses("on").run(counted, [long, short]))
    assert counted.shapes == [(2, 3)]
    assert [z.shape for z in found] == [(1, 3, 2), (1, 2, 2)]
