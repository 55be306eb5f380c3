"""The shipped language experiments, on tiny models whose tokenizers are like the real ones'."""

import pandas as pd
import pytest
import torch
from peft import PeftModel
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from leansplit.experiments.experiment import find_experiment, load_experiment, shipped_experiments
from leansplit.experiments.running import run_and_write
from leansplit.models.language.loading import quietly
from leansplit.server_app.results import read_run
from tests.language import CONFIGS
from tests.whole_grid import WHOLE_GRID

SPECIAL = {  # of each: what stands for the beginning, and what pads; all as on the hub
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    | {"unk_token": "<|endoftext|>"},
    "opt": {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "gemma3_text": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    | {"unk_token": "<unk>"},
}
FAMILIES = {
    "opt125m": ("opt", 4),
    "gemma270m": ("gemma3_text", 6),
    "llama1b": ("llama", 9),
    "gpt2_small": ("gpt2", 5),
    "gpt2_medium": ("gpt2", 10),
}
SHIPPED = [
    name
    for name in shipped_experiments()
    if name.startswith(("ho_sfl_sst2", "ho_sfl_rte", "heron_e2e"))
]
ONE_OF_EACH_MODEL = [name for name in SHIPPED if "_rte_" not in name or "opt" in name]
TEXTS = ["It was terrible", "It was great", "Yes or No?\nYes", "name[A], food[B]\nA has B."]


def save_model(folder, family, num_blocks):
    """Write a tiny model and its tokenizer; those of GPT-2 add no begin token."""
    special = SPECIAL[family]
    pairs = ByteLevelBPETokenizer()
    names = sorted(set(special.values()))
    pairs.train_from_iterator(TEXTS * 9, vocab_size=300, special_tokens=names, show_progress=False)
    tokenizer, begin = pairs._tokenizer, special["bos_token"]
    if family != "gpt2":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A $B",
            special_tokens=[(begin, names.index(begin))],
        )
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    saved.save_pretrained(folder)
    own = {
        "vocab_size": len(saved),
        "n_layer" if family == "gpt2" else "num_hidden_layers": num_blocks,
    }
    if family == "gemma3_text":
        own["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"])[:num_blocks]
    config = AutoConfig.for_model(family, **(CONFIGS[family] | own))
    torch.manual_seed(0)
    with quietly():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_data(folder, name):
    """Write as few texts as the experiment's clients need, in the columns of the real data."""
    columns = {
        "sst2": {"sentence": ["a good film", "a dull film"], "label": [1, 0]},
        "rte": {"sentence1": ["A is B.", "A is C."], "sentence2": ["B", "D"], "label": [0, 1]},
        "e2e": {"meaning_representation": ["name[A]", "name[B]"]}
        | {"human_reference": ["A is here.", "There is B."]},
    }
    rows = {key: values * 20 for key, values in columns[name].items()}
    for split in ("train", "test" if name == "e2e" else "validation"):
        pd.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    return str(folder)


@pytest.mark.parametrize("name", SHIPPED if WHOLE_GRID else ONE_OF_EACH_MODEL)
def test_one_round_of_it(name, tmp_path):
    """The cut, the auxiliary blocks, padding and prompts are the experiment's own."""
    family, num_blocks = FAMILIES["_".join(name.split("_")[3 if name.startswith("ho") else 2 :])]
    [task] = {"sst2", "rte", "e2e"} & set(name.split("_"))
    save_model(tmp_path / "model", family, num_blocks)
    (tmp_path / "data").mkdir()
    overrides = {
        "model": str(tmp_path / "model"),
        "task_options.data_path": write_data(tmp_path / "data", task),
        "rounds": 1,
        "samples": 0,
        "batch_size": 2,
        "evaluate_every": 1,
        "workers": -1,
    }
    methods = ["heron-sfl" if task == "e2e" else "ho-sfl"]
    [planned] = load_experiment(find_experiment(name), overrides=overrides, methods=methods).runs
    loaded = planned.config.workload().load_task()
    ids, mask = loaded.train.inputs[0]
    first = int(ids[mask == 1][0])
    begin = sorted(set(SPECIAL[family].values())).index(SPECIAL[family]["bos_token"])
    assert (first == begin) is (family != "gpt2")
    run_and_write(planned.config, tmp_path / "run")
    result = read_run(tmp_path / "run").result
    assert (result.status, result.rounds_completed) == ("completed", 1)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tuned = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    ids, mask = loaded.test.inputs.unbind(1)
    with torch.inference_mode():
        logits = tuned(input_ids=ids, attention_mask=mask).logits
    if task != "e2e":
        last = (mask * torch.arange(mask.shape[1])).argmax(1)
        logits = logits[torch.arange(len(ids)), last]
    loss = float(loaded.loss(logits, loaded.test.labels))
    assert loss == pytest.approx(result.final_loss, rel=1e-4)
