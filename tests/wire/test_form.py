"""The form of a record: what fits, what does not, and what the refusal says."""

import pytest
import torch

from leansplit.wire import (
    ABSENT,
    ANY,
    DecodeError,
    DeComFLReply,
    LocalTrainReply,
    ProbeReply,
    SmashedDataReply,
    TensorForm,
    WeightsReply,
    forms_of,
    require_form,
    require_forms,
)

WEIGHTS = {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3), "scale": torch.ones(())}


def test_a_tensor_has_its_own_form():
    for tensor in (torch.ones(2, 3), torch.zeros(0, 4).long(), torch.ones(()).bool()):
        TensorForm.of(tensor).require("it", tensor)
    ABSENT.require("it", torch.empty(0))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 2), r"v is float32 \[2, 2\], not float32 \[2, 3\]"),
        (torch.ones(6), r"v is float32 \[6\], not float32 \[2, 3\]"),
        (torch.ones(2, 3).double(), r"v is float64 \[2, 3\], not float32 \[2, 3\]"),
        (torch.ones(1, 2, 3), r"not float32 \[2, 3\]"),
    ],
)
def test_another_shape_or_type_is_named(tensor, message):
    with pytest.raises(DecodeError, match=message):
        TensorForm((2, 3)).require("v", tensor)


def test_leading_dimensions_come_first():
    assert TensorForm((2,), torch.int64, 5).stacked(4, 3) == TensorForm((4, 3, 2), torch.int64, 5)


def test_all_sequences_of_a_batch_have_one_length():
    def upload(z, y):
        return SmashedDataReply(smashed_data=torch.ones(2, z, 3), labels=torch.ones(2, y))

    form = {"smashed_data": TensorForm((2, ANY, 3)), "labels": TensorForm((2, ANY))}
    require_form(upload(7, 7), form)
    with pytest.raises(DecodeError, match=r"different lengths: \[7, 9\]"):
        require_form(upload(7, 9), form)


def test_sequences_of_several_batches_have_the_lengths_of_their_batches():
    def uploads(*sizes):
        steps = {str(i): size for i, size in enumerate(sizes)}
        z = {i: torch.ones(2, size[0], 3) for i, size in steps.items()}
        y = {i: torch.ones(2, size[1]) for i, size in steps.items()}
        return LocalTrainReply(weights={}, smashed_data=z, labels=y, num_samples=4)

    form = {
        "smashed_data": dict.fromkeys("01", TensorForm((2, ANY, 3))),
        "labels": dict.fromkeys("01", TensorForm((2, ANY))),
        "weights": {},
        "num_samples": 4,
    }
    require_form(uploads((7, 7), (9, 9)), form)
    with pytest.raises(DecodeError, match="different lengths"):
        require_form(uploads((7, 7), (9, 8)), form)


@pytest.mark.parametrize("labels", [[0, 3, 1], [-1, 0, 2], [0, 1, 2**40]])
def test_labels_that_are_no_classes_are_refused(labels):
    form = TensorForm((3,), torch.int64, num_classes=3)
    form.require("y", torch.tensor([0, 2, 1]))
    with pytest.raises(DecodeError, match=r"y holds values from .* not class indices below 3"):
        form.require("y", torch.tensor(labels))
    TensorForm((3,), torch.int64).require("y", torch.tensor(labels))
    form.stacked(0).require("y", torch.empty(0, 3, dtype=torch.int64))


def test_names_must_be_those_asked_for():
    forms = forms_of(WEIGHTS)
    require_forms("w", WEIGHTS, forms)
    with pytest.raises(DecodeError, match=r"w lacks 'a\.bias', 'scale'$"):
        require_forms("w", {"a.weight": WEIGHTS["a.weight"]}, forms)
    with pytest.raises(DecodeError, match="unknown tensors: '0', '1', '2' and 7 more"):
        require_forms("w", {**WEIGHTS, **{str(i): torch.ones(1) for i in range(10)}}, forms)
    with pytest.raises(DecodeError, match=r"w 'a\.bias' is float32 \[2\], not float32 \[3\]"):
        require_forms("w", {**WEIGHTS, "a.bias": torch.ones(2)}, forms)


def test_a_record_is_held_to_tensors_and_known_header_fields():
    form = {"scalars": TensorForm((2, 3)), "num_samples": 8}
    require_form(DeComFLReply(scalars=torch.ones(2, 3), num_samples=8, checksum="any"), form)
    with pytest.raises(DecodeError, match=r"DeComFLReply\.num_samples is 9, not 8"):
        require_form(DeComFLReply(scalars=torch.ones(2, 3), num_samples=9, checksum=""), form)
    with pytest.raises(DecodeError, match=r"DeComFLReply\.scalars is float32 \[6\]"):
        require_form(DeComFLReply(scalars=torch.ones(6), num_samples=8, checksum=""), form)
    require_form(WeightsReply(weights=WEIGHTS), {"weights": forms_of(WEIGHTS)})


def test_a_form_that_leaves_out_a_tensor_is_a_mistake_of_the_strategy():
    reply = ProbeReply(scalars=torch.ones(2))
    for form in ({}, {"scalars": TensorForm((2,)), "scalers": TensorForm((2,))}):
        with pytest.raises(TypeError, match="form of a ProbeReply does not match its fields"):
            require_form(reply, form)
