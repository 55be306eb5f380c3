"""What a source must hold, and what may be drawn anew."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from leansplit.errors import UserError
from leansplit.models import adapter_config_of, build_model, split_at
from leansplit.models.language.export import save_adapter, save_merged
from leansplit.models.language.loading import load_client_part, load_whole, quietly
from tests.language import CONFIGS
from tests.models.language.test_adapters import trained
from tests.models.language.test_halves import batch, language_model


def save(kind, name, folder, **saving):
    """Save a model of random weights as its owner does."""
    values = {key: value for key, value in CONFIGS[name].items() if key != "model_type"}
    torch.manual_seed(0)
    model = kind.from_config(AutoConfig.for_model(name, **values))
    with quietly():
        model.save_pretrained(folder, **saving)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save(AutoModelForCausalLM, "llama", folder)
    return folder


def changed(folder, to, change):
    """Copy a folder, if it is not the same, and put other weights into it."""
    if to != folder:
        shutil.copytree(folder, to, dirs_exist_ok=True)
    weights = to / "model.safetensors"
    save_file(change(load_file(weights)), weights, {"format": "pt"})
    return str(to)


def whole(source, outputs="classes", num_classes=3, precision="float32"):
    return load_whole(str(source), outputs=outputs, num_classes=num_classes, precision=precision)


def test_weights_under_other_names_are_refused(llama, tmp_path):
    source = changed(llama, tmp_path, lambda state: {f"mine.{k}": v for k, v in state.items()})
    asks = r"its files hold only \d+ of \d+ weights that its config.json asks for, and lack "
    with pytest.raises(UserError, match=asks) as caught:
        whole(source)
    assert "model.embed_tokens.weight" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=asks):
        load_client_part(source, num_blocks=2, precision="float32")


def test_a_lost_block_is_missed_by_whom_it_belongs_to(llama, tmp_path):
    source = changed(
        llama, tmp_path, lambda state: {k: v for k, v in state.items() if ".layers.2." not in k}
    )
    with pytest.raises(UserError, match=r"model\.layers\.2\.input_layernorm\.weight.* and 6 more"):
        whole(source)
    with pytest.raises(UserError, match=r"layers\.2\."):
        load_client_part(source, num_blocks=3, precision="float32")
    part = load_client_part(source, num_blocks=2, precision="float32")
    assert torch.equal(
        part.inner.model.layers[1].mlp.up_proj.weight,
        load_file(llama / "model.safetensors")["model.layers.1.mlp.up_proj.weight"],
    )


def test_a_model_without_output_embeddings_only_classifies(tmp_path):
    save(AutoModel, "llama", tmp_path)
    assert whole(tmp_path).drawn == ("score",)
    for outputs in ("tokens", "next_token"):
        with pytest.raises(UserError, match=r"holds no lm_head\.weight.*use classification"):
            whole(tmp_path, outputs, 0)


def test_a_head_of_other_classes_is_drawn_anew(tmp_path):
    save_merged(language_model("llama"), tmp_path)  # three classes
    assert whole(tmp_path).drawn == ()
    loaded = whole(tmp_path, num_classes=5)
    assert loaded.drawn == ("score",) and loaded.inner.score.weight.shape == (5, 16)
    kept = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(loaded.inner.model.layers[0].mlp.up_proj.weight, kept)


@pytest.mark.parametrize("kind", ["shards", "pickled"])
def test_weights_in_other_files(kind, llama, tmp_path):
    saving = {"max_shard_size": "8KB"} if kind == "shards" else {}
    model = save(AutoModelForCausalLM, "llama", tmp_path, **saving)
    if kind == "pickled":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    expected = whole(llama, "tokens", 0).inner.state_dict()
    got = whole(tmp_path, "tokens", 0).inner.state_dict()
    assert got.keys() == expected.keys() and all(torch.equal(got[k], expected[k]) for k in got)
    client = load_client_part(str(tmp_path), num_blocks=2, precision="float32").inner
    assert torch.equal(
        client.model.layers[1].mlp.up_proj.weight, got["model.layers.1.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8", "of tomorrow"])
def test_quantised_weights_are_refused(method, llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (whole, lambda source: load_client_part(source, num_blocks=1, precision="float32")):
        with pytest.raises(UserError, match="are quantised, and leansplit takes plain ones"):
            load(str(tmp_path))


def test_an_adapter_is_no_model(llama, tmp_path):
    options = {"source": str(llama)}
    model = trained("llama", "classes", **options)
    save_adapter(model, adapter_config_of(options), tmp_path, source=str(llama))
    with pytest.raises(UserError, match="holds an adapter; give a whole model"):
        whole(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
     ("pytorch_model.bin", "no weights")],
)  # fmt: skip
def test_damaged_files_are_one_line_errors(file, content, llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    if file.endswith("bin"):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=r"no model at|cannot load the model") as caught:
        whole(tmp_path)
    assert "\n" not in str(caught.value)


def without_pooler(tmp_path, **options):
    """A BERT as masked language modelling leaves it, loaded to classify."""
    save(AutoModel, "bert", tmp_path)
    source = changed(
        tmp_path, tmp_path, lambda state: {k: v for k, v in state.items() if "pooler" not in k}
    )
    options |= {"source": source}
    return trained("bert", "classes", **options), options


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_pooler_that_is_new_is_trained(precision, tmp_path):
    model, options = without_pooler(tmp_path, precision=precision)
    split = split_at(model, "3")
    names = {name for name, p in split.server_model.named_parameters() if p.requires_grad}
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= names
    assert model.inner.bert.pooler.dense.weight.dtype == torch.float32
    assert torch.equal(
        split.server_model(split.client_model(batch("right"))), model(batch("right"))
    )
    client = load_client_part(options["source"], num_blocks=3, precision=precision)
    assert client.inner.bert.encoder.layer[2].attention.self.query.weight.dtype == getattr(
        torch, precision
    )


def test_a_pooler_that_is_there_stays_as_it_is(tmp_path):
    save(AutoModel, "bert", tmp_path)
    model = build_model(
        "language", input_shape=(2, 9), num_classes=3, seed=0, options={"source": str(tmp_path)}
    )
    assert not model.inner.bert.pooler.dense.weight.requires_grad


def test_an_adapter_brings_the_pooler_that_was_new(tmp_path):
    """Whoever loads it draws another pooler, which the adapter's replaces."""
    from peft import PeftModel

    model, options = without_pooler(tmp_path / "base")
    save_adapter(model, adapter_config_of(options), tmp_path / "adapter", source=options["source"])
    torch.manual_seed(5)
    with quietly():
        base = AutoModelForSequenceClassification.from_pretrained(options["source"], num_labels=3)
    assert not torch.equal(base.bert.pooler.dense.weight, model.inner.bert.pooler.dense.weight)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids, mask = batch("right").unbind(1)
    got = loaded(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(got, model(batch("right")), atol=1e-5, rtol=1e-5)
