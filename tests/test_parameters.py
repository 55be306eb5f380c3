import hashlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leansplit.parameters import (
    ParameterSpec,
    checksum,
    load_parameters_,
    trainable_parameters,
)

SHAPES = st.dictionaries(
    st.text("ab.1", min_size=1, max_size=4),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    max_size=5,
)


def filled(shapes):
    """Number all elements, so that a misplaced one shows."""
    counter = itertools.count(1)
    return {
        name: torch.tensor(
            [float(next(counter)) for _ in range(torch.Size(shape).numel())]
        ).reshape(shape)
        for name, shape in shapes.items()
    }


@given(SHAPES)
def test_views_undo_flatten(shapes):
    parameters = filled(shapes)
    spec = ParameterSpec.of(parameters)
    vector = spec.flatten(parameters)
    assert vector.shape == (spec.num_elements,) and vector.dtype == torch.float32
    views = spec.views(vector)
    assert sorted(views) == sorted(parameters)
    for name, value in parameters.items():
        assert views[name].shape == value.shape
        assert torch.equal(views[name], value)


@given(SHAPES, st.randoms(use_true_random=False))
def test_order_depends_on_names_alone(shapes, random):
    parameters = filled(shapes)
    names = list(parameters)
    random.shuffle(names)
    shuffled = {name: parameters[name] for name in names}
    assert ParameterSpec.of(shuffled) == ParameterSpec.of(parameters)
    spec = ParameterSpec.of(parameters)
    assert torch.equal(spec.flatten(shuffled), spec.flatten(parameters))


def test_layout_is_sorted_by_name_then_row_major():
    parameters = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a10": torch.tensor([5.0])}
    parameters["a2"] = torch.tensor(6.0)
    spec = ParameterSpec.of(parameters)
    assert spec.names == ("a10", "a2", "b")
    assert spec.shapes == ((1,), (), (2, 2))
    assert spec.num_elements == 6
    assert spec.flatten(parameters).tolist() == [5, 6, 1, 2, 3, 4]
    transposed = {"b": parameters["b"].T}
    assert ParameterSpec.of(transposed).flatten(transposed).tolist() == [1, 3, 2, 4]


def test_flatten_copies_and_views_share():
    weight = torch.zeros(3)
    spec = ParameterSpec.of({"weight": weight})
    vector = spec.flatten({"weight": weight})
    vector[0] = 1
    assert weight.tolist() == [0, 0, 0]
    spec.views(vector)["weight"][2] = 5
    assert vector.tolist() == [1, 0, 5]


def test_empty_set():
    spec = ParameterSpec.of({})
    assert spec.num_elements == 0
    assert spec.flatten({}).shape == (0,)
    assert spec.views(torch.empty(0)) == {}


def frozen_first_layer():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    return model


def test_trainable_parameters_share_memory_and_leave_out_the_frozen():
    model = frozen_first_layer()
    parameters = trainable_parameters(model)
    assert list(parameters) == ["0.bias", "1.weight", "1.bias"]
    assert not any(value.requires_grad for value in parameters.values())
    parameters["1.bias"].fill_(7)
    assert model[1].bias.item() == 7


def test_load_parameters_writes_what_is_named_and_nothing_else():
    model = frozen_first_layer()
    before = {name: value.clone() for name, value in model.named_parameters()}
    load_parameters_(model, {"1.bias": torch.tensor([3.0])})
    assert model[1].bias.item() == 3 and model[1].bias.requires_grad
    for name in ("0.weight", "0.bias", "1.weight"):
        assert torch.equal(model.get_parameter(name), before[name])
    with pytest.raises(KeyError, match="nowhere"):
        load_parameters_(model, {"nowhere": torch.zeros(1)})


def test_checksum_golden_value():
    message = b"a:torch.float32:(2,);" + bytes.fromhex("0000803f 00000040")
    golden = hashlib.blake2b(message, digest_size=8).hexdigest()
    assert checksum({"a": torch.tensor([1.0, 2.0])}) == golden == "59fd37ccf6518291"


def test_checksum_sees_every_bit_name_shape_and_dtype():
    base = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor(2.0)}
    variants = [
        base,
        {"a": torch.tensor([1.0, -0.0]), "b": torch.tensor(2.0)},  # the sign of zero
        {"a": torch.tensor([1.0, 1e-45]), "b": torch.tensor(2.0)},  # the smallest bit
        {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor(2.0)},
        {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor(2.0)},
        {"a": torch.tensor([1.0, 0.0]), "c": torch.tensor(2.0)},
        {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([2.0])},
        {"a": torch.tensor([1.0, 0.0]).view(torch.int32), "b": torch.tensor(2.0)},
        {"a": torch.tensor([1.0, 0.0])},
        {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor(2.0), "c": torch.empty(0)},
        {},
    ]
    sums = [checksum(tensors) for tensors in variants]
    assert len(set(sums)) == len(variants)
    assert all(len(bytes.fromhex(value)) == 8 for value in sums)


def test_checksum_ignores_order_strides_and_gradients():
    weight = torch.arange(6.0).reshape(2, 3)
    parameters = {"a": weight, "b": torch.ones(1, dtype=torch.bfloat16)}
    assert checksum(parameters) == checksum(dict(reversed(parameters.items())))
    strided = {**parameters, "a": weight.T.contiguous().T.requires_grad_()}
    assert not strided["a"].is_contiguous()
    assert checksum(parameters) == checksum(strided)
