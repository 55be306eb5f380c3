"""A tree of state, taken apart and put together again, is the same tree."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leansplit.state import apart, together

NAMES = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["a/b", "~", "~1", ""])
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=5)
)
TENSORS = st.integers(0, 5).map(lambda n: torch.arange(n, dtype=torch.float64))
LEAVES = PLAIN | TENSORS | st.lists(PLAIN, max_size=3)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=3),
    lambda trees: st.dictionaries(NAMES, LEAVES | trees, max_size=3),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b and type(a) is type(b)


@given(TREES)
def test_trees_come_back(tree):
    tensors, fields = apart(tree)
    assert same(together(tensors, json.loads(json.dumps(fields))), tree)


def test_whole_number_keys_come_back_as_text():
    assert together(*apart({3: {"x": 1}})) == {"3": {"x": 1}}


def test_tensors_are_copies():
    value = torch.zeros(2)
    tensors, _ = apart({"x": value, "y": value})
    value += 1
    assert tensors["x"].sum() == 0
    assert tensors["x"].data_ptr() != tensors["y"].data_ptr()


@pytest.mark.parametrize("value", [object(), {1, 2}, [torch.zeros(1)], b"bytes"])
def test_what_is_no_data_is_refused_by_its_path(value):
    with pytest.raises(TypeError, match="a/b"):
        apart({"a": {"b": value}})


def test_a_tensor_without_a_place_is_refused():
    for path in ("a/b", "a/b/c", "x"):
        with pytest.raises(ValueError, match="no place"):
            together({path: torch.zeros(1)}, {"a": 1, "x": 2})
