"""A tiny GPT-2 from random weights to adapters that others can load, as docs/language.md says."""

import itertools

import pandas as pd
import pytest
import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from leansplit.errors import UserError
from leansplit.experiments import tiny_gpt2
from leansplit.experiments.experiment import find_experiment, load_experiment
from leansplit.experiments.running import run_and_write
from leansplit.server_app.results import read_run
from leansplit.tasks.text_metrics import token_loss

NAMES, PLACES = ["The Eagle", "Aromi", "Blue Spice"], ["riverside", "city centre"]


def write_restaurants(folder):
    """Write texts in E2E's columns: pubs, and coffee shops."""
    rows = [
        {
            "meaning_representation": f"name[{name}], eatType[{kind}], area[{place}]",
            "human_reference": f"{name} is a {kind} in the {place} area.",
        }
        for kind, name, place in itertools.product(["pub", "coffee shop"], NAMES, PLACES)
    ]
    for split in ("train", "test"):
        pd.DataFrame(rows * 3).to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the command makes of E2E, here of a few rows."""
    folder = tmp_path_factory.mktemp("tiny")
    data = write_restaurants(folder)
    app = typer.Typer()
    app.command()(tiny_gpt2.main)
    options = ["--data", str(data), "--steps", "30", "--vocabulary-size", "300"]
    said = CliRunner().invoke(app, ["--out", str(folder / "out"), *options])
    assert said.exit_code == 0, said.output
    assert "test texts on coffee shops: accuracy" in said.output and "bleu" in said.output
    return folder / "out"


def test_the_texts_are_parted(made):
    held_back = pd.read_parquet(made / "data" / "train.parquet")["meaning_representation"]
    others = pd.read_parquet(made / "before" / "train.parquet")["meaning_representation"]
    assert held_back.str.contains("coffee shop").all() and len(held_back) == 18
    assert not others.str.contains("coffee shop").any() and len(others) == 18
    assert AutoTokenizer.from_pretrained(made / "model").decode([0, 1]) == "<pad><end>"


def test_e2e_without_coffee_shops_is_refused(tmp_path):
    rows = {"meaning_representation": ["name[A]"], "human_reference": ["A."]}
    for split in ("train", "test"):
        pd.DataFrame(rows).to_csv(tmp_path / f"{split}.csv", index=False)
    with pytest.raises(UserError, match="the train split of E2E has no rows for data"):
        tiny_gpt2.part_texts(tmp_path / "out", tmp_path)


@pytest.mark.parametrize("method", ["heron-sfl", "ho-sfl"])
def test_perplexity_falls_and_the_adapter_loads_without_leansplit(method, made, tmp_path):
    """The shipped experiment in short: what is learned is in the adapter, whoever loads it."""
    overrides = {"model": str(made / "model"), "task_options.data_path": str(made / "data")}
    overrides |= {"rounds": 12, "batch_size": 6, "generated_texts": 2}
    overrides["task_options.max_length"] = 48
    file = find_experiment("e2e_tiny_gpt2")
    [planned] = load_experiment(file, overrides=overrides, methods=[method]).runs
    run_and_write(planned.config, tmp_path)
    run = read_run(tmp_path)
    perplexity = run.rounds["perplexity"]
    assert perplexity.iloc[-1] < 0.95 * perplexity.iloc[0]
    assert run.result.measures["perplexity"] == perplexity.iloc[-1]
    assert (tmp_path / "texts.jsonl").read_text().count("\n") == 2

    base = AutoModelForCausalLM.from_pretrained(made / "model")
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    test = planned.config.workload().load_task().test
    ids, mask = test.inputs.unbind(1)
    with torch.inference_mode():
        loss = token_loss(tuned(input_ids=ids, attention_mask=mask).logits, test.labels)
    assert float(loss) == pytest.approx(run.result.final_loss, rel=1e-4)
