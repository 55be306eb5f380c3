"""Logits a few positions at a time: the same losses and gradients in less memory."""

import pytest
import torch
from torch import nn

from leansplit.costs import peak_tensor_bytes
from leansplit.models import AuxiliaryConfig, build_auxiliary, split_at
from leansplit.models.language.chunked import POSITIONS_AT_ONCE, ChunkedLogits
from leansplit.sequences import IGNORED
from leansplit.tasks.text_metrics import token_accuracy, token_loss
from tests.language import DECODERS
from tests.models.language.test_halves import batch, language_model

VOCABULARY = 50


def example(num_rows=7, length=40):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, length, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (num_rows, length - 3), generator=generator)
    labels[:, ::3] = IGNORED
    torch.manual_seed(1)
    return hidden, labels, nn.Linear(8, VOCABULARY)


def test_loss_gradient_and_accuracy_are_those_of_all_logits():
    hidden, labels, unembed = example()
    assert (labels != IGNORED).sum() > 2 * POSITIONS_AT_ONCE
    chunked = ChunkedLogits(hidden, unembed)
    loss, wanted = token_loss(chunked, labels), token_loss(unembed(hidden), labels)
    torch.testing.assert_close(loss, wanted)
    assert token_accuracy(chunked, labels) == token_accuracy(unembed(hidden), labels)
    parameters = [hidden, *unembed.parameters()]
    got = torch.autograd.grad(loss, parameters)
    for own, other in zip(got, torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(own, other)


def test_losses_in_float64():
    hidden, labels, unembed = example()
    loss = token_loss(ChunkedLogits(hidden, unembed).double(), labels)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, token_loss(unembed(hidden).double(), labels))


def test_gradients_can_be_differentiated():
    hidden, labels, unembed = example(num_rows=2)
    seconds = []
    for outputs in (ChunkedLogits(hidden, unembed), unembed(hidden)):
        loss = token_loss(outputs, labels)
        [first] = torch.autograd.grad(loss, [hidden], create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), [unembed.weight])[0])
    torch.testing.assert_close(*seconds)


@pytest.mark.parametrize("differentiates", [False, True])
def test_a_batch_s_logits_are_never_held(differentiates):
    width, vocabulary = 8, 5000
    hidden = torch.randn(8, 64, width, requires_grad=differentiates)
    labels = torch.zeros(8, 64, dtype=torch.int64)
    unembed = nn.Linear(width, vocabulary, bias=False).requires_grad_(False)

    def step(outputs):
        loss = token_loss(outputs, labels)
        if differentiates:
            loss.backward()

    lean = peak_tensor_bytes(lambda: step(ChunkedLogits(hidden, unembed)))
    full = peak_tensor_bytes(lambda: step(unembed(hidden)))
    assert full > 8 * 64 * vocabulary * 4 > 2 * lean


@pytest.mark.parametrize("kind", ["blocks", "copy"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_head_of_server_blocks_predicts_what_they_do(name, kind):
    split = split_at(language_model(name, "tokens").eval(), "1")
    blocks = {"num_blocks": 3} if kind == "blocks" else {}
    config = AuxiliaryConfig(kind=kind, initialise="server", **blocks)
    head = build_auxiliary(config, split, (9, 17), seed=0).eval()
    tokens = batch("none")
    labels = tokens[:, 0].roll(-1, 1)
    z = split.client_model(tokens)
    torch.testing.assert_close(
        token_loss(head(z), labels), token_loss(split.server_model(z), labels)
    )
    assert not {id(p) for p in head.parameters() if p.requires_grad} & {
        id(p) for p in split.server_model.parameters()
    }
