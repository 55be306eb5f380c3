"""Our bytes are those of safetensors itself."""

import pytest
import safetensors.torch
import torch

from leansplit.wire import tensor_bytes

TENSORS = {
    "none": {},
    "empty": {"e": torch.empty(0, 3), "s": torch.tensor(2.5), "i": torch.arange(4)},
    "types": {
        str(dtype): torch.ones(3, 2).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool)
    },
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("metadata", [None, {"Type": '{"round":1}'}])
def test_bytes_are_those_of_safetensors(name, metadata):
    assert tensor_bytes(TENSORS[name], metadata) == safetensors.torch.save(TENSORS[name], metadata)


def test_views_are_stored_as_they_read():
    base = torch.arange(24.0).reshape(4, 6)
    views = {"t": base.T, "row": base[1:3], "last": base[:, -1], "again": base}
    loaded = safetensors.torch.load(tensor_bytes(views))
    assert loaded.keys() == views.keys()
    assert all(torch.equal(loaded[name], view) for name, view in views.items())


def test_trained_and_inferred_tensors_are_taken():
    with torch.inference_mode():
        inferred = torch.ones(2)
    tensors = {"p": torch.nn.Parameter(torch.zeros(2)), "z": inferred}
    assert safetensors.torch.load(tensor_bytes(tensors))["z"].tolist() == [1, 1]
