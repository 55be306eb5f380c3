"""A language model from a folder: run, leave an adapter, load it without leansplit, export it."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
)

from leansplit.clients.task_workload import provide_task_workload
from leansplit.errors import UserError
from leansplit.experiments.export import config_of, export_run
from leansplit.experiments.report import rebuild_report
from leansplit.experiments.running import run_and_write
from leansplit.models.language.halves import HeldElsewhere, LanguageServerModel
from leansplit.server_app.config import run_config
from leansplit.server_app.results import read_run
from leansplit.wire import ClientPlan
from tests.language import CONFIGS, write_pairs, write_texts
from tests.tasks.test_text import saved_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained model of four blocks with its tokenizer, as a user has it."""
    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GPT2Config(**CONFIGS["gpt2"])).save_pretrained(path)
    saved_tokenizer(path, pad_token="<pad>", eos_token="<end>")
    return str(path)


def summary_of(report):
    [summary] = [path for path in report.files if path.name == "summary.md"]
    return summary.read_text()


def configure(method, folder, data_path, **overrides):
    return run_config(
        method,
        {
            "task": "text",
            "task_options.data_path": data_path,
            "model": folder,
            "cut_layer": "2",
            "clients": 4,
            "cohort": 2,
            "rounds": 2,
            "batch_size": 4,
            "client.lr": 0.05,
            "server.lr": 0.05,
            "workers": -1,
            **overrides,
        },
    )


def test_a_folder_is_a_model_and_its_tokenizer(folder, tmp_path):
    config = configure("ho-sfl", folder, write_texts(tmp_path))
    assert (config.model, config.model_options) == ("language", {"source": folder})
    assert config.task_options["tokenizer"] == folder
    other = configure("ho-sfl", folder, str(tmp_path), **{"task_options.tokenizer": "bytes"})
    assert other.task_options["tokenizer"] == "bytes"
    with pytest.raises(UserError, match="unknown model"):
        run_config("ho-sfl", {"task": "digits", "model": folder})
    with pytest.raises(UserError, match=r"model_options\.source is 'other'; name one model"):
        configure("ho-sfl", folder, str(tmp_path), **{"model_options.source": "other"})
    same = configure("ho-sfl", folder, str(tmp_path), **{"model_options.source": folder})
    assert same.model_options == config.model_options


def test_what_the_task_needs_is_not_for_the_run_to_set(folder, tmp_path):
    config = configure(
        "ho-sfl", folder, write_texts(tmp_path), **{"model_options.outputs": "tokens"}
    )
    workload = config.workload()
    with pytest.raises(UserError, match=r"is 'tokens', but the task 'text' needs 'classes'"):
        workload.build_model(workload.load_task())


def test_the_adapter_of_a_run_loads_without_leansplit(folder, tmp_path):
    config = configure("ho-sfl", folder, write_texts(tmp_path))
    run_and_write(config, tmp_path / "run")
    again = read_run(tmp_path / "run").result
    assert again.measures.keys() == {"f1"} and config_of(again) == config
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    base.config.pad_token_id = 1
    loaded = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    task = config.workload().load_task()
    ids, mask = task.test.inputs.unbind(1)
    with torch.no_grad():
        got = loaded(input_ids=ids, attention_mask=mask).logits
    accuracy = float((got.argmax(1) == task.test.labels).double().mean())
    assert accuracy == pytest.approx(again.final_accuracy)
    assert float(task.loss(got, task.test.labels)) == pytest.approx(again.final_loss, rel=1e-5)

    export_run(tmp_path / "run", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.pad_token_id == 1 and merged.config.id2label == {0: "0", 1: "1"}
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token_id == 1
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids, attention_mask=mask).logits, got)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_trained_blocks_leave_as_merged_weights(folder, tmp_path):
    """Whole blocks below, adapters above: the client reads and trains its own from the folder."""
    whole = {"model_options.full_blocks": 1, "model_options.full_embeddings": True}
    config = configure("sflv1", folder, write_texts(tmp_path), **whole)
    run_and_write(config, tmp_path / "run")
    result = read_run(tmp_path / "run").result
    assert not (tmp_path / "run" / "adapter").exists()  # which could not hold it
    export_run(tmp_path / "run", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    task = config.workload().load_task()
    ids, mask = task.test.inputs.unbind(1)
    with torch.no_grad():
        got = merged(input_ids=ids, attention_mask=mask).logits
    assert float(task.loss(got, task.test.labels)) == pytest.approx(result.final_loss, rel=1e-5)
    before = AutoModelForCausalLM.from_pretrained(folder).transformer.state_dict()
    after = merged.transformer.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    trained = {name for name in before if name.startswith(("wte", "wpe", "h.0."))}
    adapted = {f"h.{block}.attn.c_attn.weight" for block in (1, 2, 3)}
    assert moved == trained | adapted


def test_what_a_run_writes(folder, tmp_path):
    data = write_pairs(tmp_path)
    columns = {"source_column": "asked", "target_column": "wanted", "tokenizer": "bytes"}
    options = {f"task_options.{name}": value for name, value in columns.items()}
    config = configure("sflv2", folder, data, task="generation", generated_texts=3, **options)
    run_and_write(config, tmp_path / "run")
    lines = (tmp_path / "run" / "texts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 3 and rows[0].keys() == {"prompt", "written", "wanted"}
    result = read_run(tmp_path / "run").result
    assert result.measures.keys() == {"perplexity", "bleu", "rouge_l"}
    assert result.partition == {}  # there are no labels
    report = rebuild_report(tmp_path)
    assert (tmp_path / "report.html").is_file() and "Perplexity" in summary_of(report)


def test_a_library_that_cannot_write_texts_costs_no_results(folder, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("leansplit.server_app.execution.write_texts", fail)
    columns = {"source_column": "asked", "target_column": "wanted", "tokenizer": "bytes"}
    options = {f"task_options.{name}": value for name, value in columns.items()}
    config = configure("sflv2", folder, write_pairs(tmp_path), task="generation", **options)
    run_and_write(config, tmp_path / "run")
    result = read_run(tmp_path / "run").result
    assert result.status == "completed" and result.measures.keys() == {"perplexity"}
    assert not (tmp_path / "run" / "texts.jsonl").exists()


@pytest.mark.parametrize(
    ("method", "auxiliary", "num_server_blocks"),
    [
        ("ho-sfl", {}, 0),
        ("heron-sfl", {"kind": "linear"}, 0),
        ("heron-sfl", {"kind": "blocks", "initialise": "server", "num_blocks": 1}, 1),
        ("heron-sfl", {"kind": "copy", "initialise": "server"}, 2),
        ("fedavg", {}, 2),
    ],
)
def test_clients_load_their_own_blocks_only(method, auxiliary, num_server_blocks, folder, tmp_path):
    options = {f"auxiliary.{name}": value for name, value in auxiliary.items()}
    if method == "fedavg":
        options["server.lr"] = None
    settings = {
        key: value
        for key, value in {
            "task": "text",
            "task_options.data_path": write_texts(tmp_path),
            "model": folder,
            "cut_layer": "2",
            "clients": 4,
            "cohort": 2,
            **options,
        }.items()
        if value is not None
    }
    config = run_config(method, settings)
    plan = ClientPlan(
        run_id="r",
        method=method,
        config=config.method_config(),
        num_clients=4,
        is_whole_model=method == "fedavg",
        workload=config.workload().to_dict(),
    )
    model = provide_task_workload(plan).model
    names = {name for name, _ in model.client_model.named_parameters()}
    assert any(".h.1." in name for name in names) and not any(".h.2." in name for name in names)
    if not num_server_blocks:
        assert isinstance(model.server_model, HeldElsewhere)
        with pytest.raises(RuntimeError, match="its own blocks only"):
            model.server_model(torch.zeros(1, 2, 17))
    else:
        assert isinstance(model.server_model, LanguageServerModel)
        held = {
            n.split(".h.")[1][0] for n, _ in model.server_model.named_parameters() if ".h." in n
        }
        assert held == set("23"[:num_server_blocks])


def test_only_language_models_are_exported(tmp_path):
    config = run_config(
        "ho-sfl",
        {"task": "digits", "task_options.max_train": 60, "clients": 4, "cohort": 2, "rounds": 1}
        | {"workers": -1},
    )
    run_and_write(config, tmp_path)
    with pytest.raises(UserError, match="'digits-cnn' is no language model"):
        export_run(tmp_path, tmp_path / "merged")
