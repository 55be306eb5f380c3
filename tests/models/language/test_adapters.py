"""What is trained of a language model, and the formats in which it leaves."""

import pytest
import torch

from leansplit.errors import UserError
from leansplit.models import adapter_config_of, build_model, split_at
from leansplit.models.language.export import merged_state, save_adapter, save_merged
from leansplit.parameters import copied, trainable_parameters
from tests.language import CONFIGS, config_json
from tests.models.language.test_halves import batch, language_model


def trained_names(model):
    return set(trainable_parameters(model))


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_and_the_new_head_alone_are_trained(name):
    model = language_model(name, lora_rank=3)
    names = trained_names(model)
    heads = {n for n in names if n.startswith(("score", "classifier"))}
    adapters = names - heads
    assert heads and adapters and all("lora_" in n for n in adapters)
    assert all(dict(model.named_parameters())[n].shape[0] == 3 for n in adapters if "lora_A" in n)
    assert (
        len({n.split("lora_")[0].split(".attn")[0].split(".self_attn")[0] for n in adapters}) >= 4
    )


def test_blocks_and_embeddings_can_be_trained_whole():
    model = language_model("llama", full_blocks=2, full_embeddings=True)
    client = split_at(model, "2").client_model
    assert trained_names(client) == {name for name, _ in client.named_parameters()}
    assert all(
        "lora_" in n or "score" in n for n in trained_names(split_at(model, "2").server_model)
    )
    everything = language_model("llama", train="all")
    assert trained_names(everything) == {name for name, _ in everything.named_parameters()}


def test_adapters_are_float32_over_a_base_of_lower_precision():
    for precision in ("bfloat16", "float16"):
        model = language_model("llama", precision=precision).eval()
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert model.inner.model.layers[0].mlp.up_proj.weight.dtype == getattr(torch, precision)
        split = split_at(model, "2")
        z = split.client_model(batch("left"))
        assert z.dtype == getattr(torch, precision)
        assert torch.equal(split.server_model(z), model(batch("left")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_targets": ("q_prj",)}, r"'q_prj'; did you mean .*'q_proj'.*allowed: .*v_proj"),
        ({"lora_targets": "q_proj"}, r"lora_targets must be a list such as .*, got 'q_proj'"),
        ({"rank_stabilised": "False"}, "rank_stabilised must be true or false, got 'False'"),
        ({"lora_rank": 2.5}, "lora_rank must be a whole number, got 2.5"),
        ({"full_blocks": True}, "full_blocks must be a whole number, got True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, got '8'"),
        ({"num_tokens": 259}, r"hold token 258, but the model knows 258 tokens, 0 to 257"),
        ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
        ({"lora_alpha": 0.0}, "lora_alpha must be positive"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ({"train": "adapter"}, "did you mean 'adapters'"),
        ({"full_blocks": 5}, "full_blocks is 5, but there are 4 blocks"),
        ({"full_blocks": -1}, "full_blocks must be at least 0"),
        ({"full_blocks": 1, "precision": "bfloat16"}, "trained in float32 only"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"source": ""}, "needs model_options.source"),
        ({"source": '{"hidden_size": 3}'}, "with a model_type"),
        ({"source": "/nowhere/at/all"}, "^there is no folder '/nowhere/at/all'"),
    ],
)
def test_bad_options_are_one_line_errors(options, message):
    with pytest.raises(UserError, match=message) as caught:
        language_model("llama", **options)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_read_are_one_line_errors(tmp_path):
    save_merged(language_model("llama"), tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole = config.read_text()
    config.write_text(whole.replace('"intermediate_size": 32', '"intermediate_size": 33'))
    with pytest.raises(UserError, match=r"other shapes than its config\.json says"):
        language_model("llama", source=str(tmp_path))
    config.write_text(whole)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot load the model .*header"):
        language_model("llama", source=str(tmp_path))


def test_sequences_longer_than_the_model_takes_are_refused():
    with pytest.raises(UserError, match=r"up to 129 tokens, but the model takes at most 128"):
        build_model(
            "language",
            input_shape=(2, 129),
            num_classes=2,
            seed=0,
            options={"source": config_json("gpt2")},
        )


def test_an_encoder_predicts_no_tokens():
    with pytest.raises(UserError, match="BERT models predict no next token"):
        language_model("bert", "tokens")


def test_images_and_texts_need_models_of_their_kind():
    with pytest.raises(UserError, match=r"takes images.*choose another task, or one of .*language"):
        build_model("cifar-cnn", input_shape=(2, 16), num_classes=2, seed=0)
    with pytest.raises(UserError, match="takes tokens"):
        build_model("language", input_shape=(3, 8, 8), num_classes=2, seed=0)


def trained(name, outputs, **options):
    """A model whose trained parameters have all moved."""
    model = language_model(name, outputs, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize(
    ("name", "outputs"),
    [("gpt2", "tokens"), ("gpt2", "classes"), ("opt", "classes"), ("llama", "next_token"),
     ("gemma3_text", "tokens"), ("bert", "classes")],
)  # fmt: skip
def test_the_adapter_loads_into_the_unsplit_model_without_leansplit(
    name, outputs, rank_stabilised, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if outputs == "classes" else AutoModelForCausalLM
    base = language_model(name, outputs)
    # The base as its owner has it, without adapters; new heads are drawn again and overwritten.
    save_merged(base, tmp_path / "base")
    options = {"source": str(tmp_path / "base"), "rank_stabilised": rank_stabilised}
    model = trained(name, outputs, **options)
    assert model.inner.config.model_type == name
    config = adapter_config_of(options)
    save_adapter(model, config, tmp_path / "adapter", source=str(tmp_path / "base"))
    loaded = PeftModel.from_pretrained(
        kind.from_pretrained(tmp_path / "base", num_labels=3), tmp_path / "adapter"
    ).eval()
    ids, mask = batch("none").unbind(1)
    got = loaded(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if outputs == "next_token":
        got = got[:, -1]
    torch.testing.assert_close(got, model(batch("none")), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_merged_weights_load_as_an_ordinary_model(name, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = trained(name, "classes", full_blocks=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_merged(model, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask = batch("none").unbind(1)
    got = loaded(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(got, model(batch("none")), atol=1e-5, rtol=1e-5)
    assert not any("lora_" in key or "base_layer" in key for key in merged_state(model.inner))


def test_an_adapter_cannot_hold_trained_blocks(tmp_path):
    options = {"full_blocks": 1}
    model = trained("llama", "classes", **options)
    with pytest.raises(UserError, match="save merged weights"):
        save_adapter(model, adapter_config_of(options), tmp_path, source="")


def test_copies_share_what_is_frozen():
    model = language_model("llama")
    twin = copied(model)
    for (name, own), (_, other) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert (own is other) is not own.requires_grad, name
