"""Language models cut after a block: the halves are the model, wherever it is cut."""

import copy
import pickle

import pytest
import torch

from leansplit.errors import UserError
from leansplit.first_order import recompute_forward, recompute_gradients, train_forward
from leansplit.models import (
    AuxiliaryConfig,
    build_auxiliary,
    build_model,
    chain,
    cut_layers,
    split_at,
)
from leansplit.models.language.families import Family, family_of, register_family
from leansplit.models.language.halves import last_tokens
from leansplit.models.language.loading import load_config
from leansplit.sequences import unpack
from tests.language import CONFIGS, DECODERS, VOCABULARY, config_json

LENGTH = 9
OUTPUTS = [
    *((name, "classes") for name in CONFIGS),
    *((name, outputs) for name in DECODERS for outputs in ("next_token", "tokens")),
]


def language_model(name, outputs="classes", **options):
    return build_model(
        "language",
        input_shape=(2, LENGTH),
        num_classes=3,
        seed=1,
        options={"source": config_json(name), "outputs": outputs, **options},
    )


def batch(side):
    """Rows of 9, 5 and 7 tokens, padded on one side, or three full rows."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, VOCABULARY, (3, LENGTH), generator=generator)
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    for row, length in ((1, 5), (2, 7)):
        if side == "right":
            mask[row, length:] = 0
        elif side == "left":
            mask[row, : LENGTH - length] = 0
    return torch.stack([ids.masked_fill(mask == 0, 0), mask], 1)


def unsplit_logits(model, tokens):
    """What the library's own model says, with its own search for the last token."""
    ids, mask = tokens.unbind(1)
    logits = model.inner(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if model.outputs == "next_token":
        return logits[torch.arange(len(ids)), last_tokens(mask)]
    return logits


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize(("name", "outputs"), OUTPUTS)
def test_split_logits_equal_unsplit_logits_at_every_cut(name, outputs, side, training):
    model = language_model(name, outputs, lora_dropout=0.1)
    with torch.no_grad():  # B = 0 would make adapters do nothing
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(parameter_name)))
    tokens = batch(side)
    assert cut_layers(model) == ["1", "2", "3"]
    for cut in cut_layers(model):
        split = split_at(model, cut)
        for module in (model, split.client_model, split.server_model):
            module.train(training)
        torch.manual_seed(7)
        wanted = unsplit_logits(model, tokens)
        torch.manual_seed(7)
        got = split.server_model(split.client_model(tokens))
        torch.manual_seed(7)
        whole = split.full_model(tokens)
        assert got.isfinite().all()
        if outputs == "tokens":  # what comes after padding means nothing
            kept = tokens[:, 1] == 1
            wanted, got, whole = wanted[kept], got[kept], whole[kept]
        assert torch.equal(got, whole)
        if outputs == "next_token":  # one position's logits, where the library computes all
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", CONFIGS)
def test_halves_share_the_blocks_and_hold_nothing_of_each_other(name):
    model = language_model(name)
    split = split_at(model, "3")
    client = dict(split.client_model.named_parameters())
    server = dict(split.server_model.named_parameters())
    own = dict(model.named_parameters(remove_duplicate=False))
    assert not client.keys() & server.keys() and client.keys() | server.keys() == own.keys()
    assert all(own[key] is value for key, value in {**client, **server}.items())


TIED = [name for name in DECODERS if load_config(config_json(name)).tie_word_embeddings]


@pytest.mark.parametrize("name", TIED)
def test_frozen_tied_embeddings_are_held_once(name):
    model = language_model(name, "tokens")
    split = split_at(model, "1")
    embeddings = model.inner.get_input_embeddings().weight
    assert model.inner.lm_head.weight is embeddings and not embeddings.requires_grad
    assert any(p is embeddings for p in split.client_model.parameters())
    assert any(p is embeddings for p in split.server_model.parameters())
    head = AuxiliaryConfig(kind="blocks", initialise="server")
    auxiliary = build_auxiliary(head, split, (LENGTH, 17), seed=0)
    assert sum(p is embeddings for p in auxiliary.parameters()) == 1
    assert embeddings.numel() == VOCABULARY * embeddings.shape[1]


@pytest.mark.parametrize("what", [{"train": "all"}, {"full_embeddings": True}])
@pytest.mark.parametrize("name", TIED)
def test_trained_tied_embeddings_are_untied(name, what):
    model = language_model(name, "tokens", **what)
    split = split_at(model, "1")
    embeddings = model.inner.get_input_embeddings().weight
    assert model.inner.lm_head.weight is not embeddings
    before = embeddings.detach().clone()
    loss = split.server_model(split.client_model(batch("none")).detach()).square().mean()
    loss.backward()
    is_trained = "train" in what
    assert (model.inner.lm_head.weight.grad is not None) is is_trained
    assert embeddings.requires_grad and embeddings.grad is None
    assert torch.equal(embeddings, before)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_does_not_change_what_a_row_gives(name):
    model = language_model(name).eval()
    split = split_at(model, "2")
    row = batch("none")[:1]
    alone = split.server_model(split.client_model(row))
    filler = torch.zeros(1, 2, 4, dtype=torch.int64)
    longer = torch.cat([row, filler], 2)
    padded = split.server_model(split.client_model(longer))
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_fully_masked_rows_stay_finite(name):
    split = split_at(language_model(name).eval(), "2")
    tokens = batch("left")
    tokens[1] = 0
    assert split.server_model(split.client_model(tokens)).isfinite().all()


def test_the_mask_rides_behind_the_hidden_states_without_a_gradient():
    split = split_at(language_model("gpt2"), "2")
    tokens = batch("left")
    z = split.client_model(tokens).detach().requires_grad_(True)
    hidden, mask = unpack(z)
    assert hidden.shape == (3, LENGTH, 16) and torch.equal(mask, tokens[:, 1])
    split.server_model(z).square().sum().backward()
    assert z.grad[..., -1].eq(0).all() and z.grad[..., :-1].abs().sum() > 0
    assert z.grad[..., :-1][mask == 0].eq(0).all()  # nothing depends on padding


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_halves_can_be_copied_and_pickled(name):
    split = split_at(language_model(name).eval(), "2")
    tokens = batch("right")
    wanted = split.client_model(tokens)
    for again in (
        copy.deepcopy(split.client_model),
        pickle.loads(pickle.dumps(split.client_model)),
    ):
        assert torch.equal(again(tokens), wanted)
        own = next(p for key, p in again.named_parameters() if "lora_B" in key)
        with torch.no_grad():
            own.add_(1.0)
        assert not torch.equal(again(tokens), wanted)
    assert torch.equal(split.client_model(tokens), wanted)


def test_a_cut_outside_the_model_is_refused():
    with pytest.raises(UserError, match=r"unknown cut layer '4'.*allowed: 1, 2, 3"):
        split_at(language_model("gpt2"), "4")


def test_an_unknown_architecture_names_the_adapter_to_write():
    with pytest.raises(
        UserError, match=r"type 't5' cannot be split.*Family\(model_types=\('t5',\)"
    ):
        build_model(
            "language",
            input_shape=(2, 8),
            num_classes=2,
            seed=0,
            options={"source": '{"model_type": "t5"}'},
        )


def test_a_family_of_ones_own():
    own = Family(
        name="Mine",
        model_types=("mine-of-tests",),
        stack="model",
        blocks="layers",
        below={},
        above={},
        is_causal=True,
        lora_targets=("q_proj",),
    )
    register_family(own)
    assert family_of("mine-of-tests") is own
    with pytest.raises(UserError, match="belongs to the family 'Mine'"):
        register_family(own)


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_client_recomputes_block_by_block_to_the_same_bits(name, side):
    client_model = split_at(language_model(name, lora_dropout=0.1), "3").client_model
    kept, tokens = copy.deepcopy(client_model), batch(side)
    z = train_forward(kept, tokens, dropout_seed=5)
    gradient = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    z.backward(gradient)
    links = chain(client_model)
    assert len(links) == 3
    assert torch.equal(recompute_forward(links, tokens, dropout_seed=5), z)
    recompute_gradients(links, tokens, gradient, dropout_seed=5)
    gradients = {name: p.grad for name, p in client_model.named_parameters() if p.requires_grad}
    assert any(value.any() for value in gradients.values())
    for parameter_name, parameter in kept.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(gradients[parameter_name], parameter.grad), parameter_name


def test_a_client_of_one_block_is_one_link():
    client_model = split_at(language_model("gpt2"), "1").client_model
    assert chain(client_model) == [client_model]
