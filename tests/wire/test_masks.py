"""Smashed data of sequences on the wire: hidden states and mask apart, each under its kind."""

import json

import pytest
import safetensors.torch
import torch

from leansplit.sequences import pack
from leansplit.wire import (
    DecodeError,
    LocalTrainReply,
    ProbedSmashedDataReply,
    ProbeRequest,
    SetupReply,
    SmashedDataReply,
    WeightsReply,
    decode,
    encode,
    price,
)

MASK = torch.tensor([[1, 1, 0], [0, 1, 1]])
HIDDEN = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
Z = pack(HIDDEN, MASK)
LABELS = torch.tensor([0, 1])
GRADIENT = pack(HIDDEN, torch.zeros(2, 3))
SEEDS = torch.tensor([1, 2], dtype=torch.uint32)
RECORDS = {
    "upload": SmashedDataReply(smashed_data=Z, labels=LABELS, checksum="c"),
    "probed": ProbedSmashedDataReply(
        smashed_data=Z, labels=LABELS, plus=torch.stack([Z, Z]), minus=torch.stack([Z, Z])
    ),
    "probed without anchor": ProbedSmashedDataReply(labels=LABELS, plus=torch.stack([Z, Z])),
    "uploads": LocalTrainReply(
        weights={"a.mask": torch.ones(2)},
        smashed_data={"0": Z, "1": Z[:, :2]},
        labels={"0": LABELS, "1": LABELS.clone()},
        num_samples=4,
    ),
    "gradient": ProbeRequest(round=1, smashed_gradient=GRADIENT, seeds=SEEDS),
    "no samples": SetupReply(
        num_samples=3, label_counts=[1, 2], smashed_data=Z[:0], labels=LABELS[:0]
    ),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_records_come_back_as_they_went(record):
    again = decode(encode(record, has_mask=True))
    assert type(again) is type(record)
    for name, value in vars(record).items():
        other = getattr(again, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(other, value) and other.dtype == value.dtype, name
        elif isinstance(value, dict):
            assert other.keys() == value.keys()
            assert all(torch.equal(other[key], tensor) for key, tensor in value.items())
        else:
            assert other == value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("upload", {"smashed_data": 96, "masks": 6, "labels": 16}),
        ("probed", {"smashed_data": 5 * 96, "masks": 3 * 6, "labels": 16}),
        ("probed without anchor", {"smashed_data": 2 * 96, "masks": 6, "labels": 16}),
        ("uploads", {"smashed_data": 96 + 64, "masks": 6 + 4, "labels": 32, "weights": 8}),
        ("gradient", {"smashed_gradient": 96, "seeds": 8}),
    ],
)
def test_hidden_states_and_masks_have_their_own_price(name, expected):
    blob = encode(RECORDS[name], has_mask=True)
    priced = {kind: size for kind, size in price(blob).items() if size}
    assert priced.pop("envelope") == len(blob) - sum(expected.values())
    assert priced == expected


def test_without_masks_nothing_is_taken_apart():
    record = WeightsReply(weights={"x": torch.ones(2, 3)})
    assert encode(record) == encode(record, has_mask=True)
    plain = encode(RECORDS["upload"])
    assert price(plain)["smashed_data"] == Z.numel() * 4 and "masks" not in price(plain)
    assert torch.equal(decode(plain).smashed_data, Z)


@pytest.mark.parametrize(
    "mask",
    [
        MASK.float(),
        MASK[:, :2].to(torch.uint8),
        torch.full((2, 3), 2, dtype=torch.uint8),
        torch.ones(3, 2, dtype=torch.uint8),
        torch.ones(0, dtype=torch.uint8),
    ],
    ids=["floats", "too short", "no zeros and ones", "turned", "of a gradient"],
)
def test_a_mask_that_does_not_belong_is_refused(mask):
    blob = encode(RECORDS["upload"], has_mask=True)
    tensors = safetensors.torch.load(blob)
    tensors["smashed_data.mask"] = mask
    header = blob[8 : 8 + int.from_bytes(blob[:8], "little")]
    metadata = json.loads(header)["__metadata__"]
    with pytest.raises(DecodeError, match=r"SmashedDataReply\.smashed_data: its mask"):
        decode(safetensors.torch.save(tensors, metadata))


def test_a_mask_of_nothing_is_refused():
    blob = encode(RECORDS["upload"], has_mask=True)
    metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    tensors = safetensors.torch.load(blob)
    for name in ("checksum.mask", "labels.mask", "smashed_data.mask.mask"):
        with pytest.raises(DecodeError, match="no payload field"):
            extra = {name: torch.ones(2, 3, dtype=torch.uint8)}
            decode(safetensors.torch.save({**tensors, **extra}, metadata))
