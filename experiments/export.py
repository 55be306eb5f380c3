"""A run's final language model as an ordinary model of the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch

from leansplit.errors import UserError
from leansplit.models.language.halves import WholeLanguageModel
from leansplit.server_app.config import RunConfig, run_config
from leansplit.server_app.key_values import flatten
from leansplit.server_app.methods import is_used
from leansplit.server_app.outputs import MODEL_FILE
from leansplit.server_app.results import RunResult, read_run
from leansplit.tasks.tokens import PretrainedTokenizer, load_tokenizer


def export_run(run_dir: Path, out_dir: Path) -> None:
    """Write the final model of a run with its adapters merged, and its tokenizer if it has one.

    Its configuration names the classes and the tokenizer's padding token.

    Args:
        run_dir: the folder of a run.
        out_dir: for ``from_pretrained``; made if it is not there.

    Raises:
        UserError: if there is no such run, or its model is no language model.
    """
    result = read_run(run_dir).result
    weights = run_dir / MODEL_FILE
    if not weights.is_file():
        raise UserError(f"{run_dir} holds no {MODEL_FILE}: the run did not get as far")
    workload = config_of(result).workload()
    task = workload.load_task()
    model = workload.build_model(task)
    whole = model.full_model
    if not isinstance(whole, WholeLanguageModel):
        raise UserError(
            f"the model {result.config['model']!r} is no language model; its weights are in "
            f"{weights}, under the unsplit model's names"
        )
    model.load_full_state_dict(safetensors.torch.load_file(weights))
    # Takes seconds to import, and most commands need none of it.
    from leansplit.models.language.export import save_merged

    own = whole.inner.config
    if whole.outputs == "classes":
        own.id2label = dict(enumerate(task.class_names))
        own.label2id = {name: label for label, name in own.id2label.items()}
    options = result.config["task_options"]
    if source := str(options.get("tokenizer", "")):
        tokenizer = load_tokenizer(source, str(options.get("pad_token", "")))
        if isinstance(tokenizer, PretrainedTokenizer):
            tokenizer.save(out_dir)
            if tokenizer.pad_id < own.vocab_size:  # by it the library finds the end of a text
                own.pad_token_id = tokenizer.pad_id
    save_merged(whole, out_dir)


def config_of(result: RunResult) -> RunConfig:
    """Return the configuration that a run had."""
    values: dict[str, Any] = dict(result.config)
    values |= values.pop("options")
    for name in ("method", "initial_weights_digest"):
        values.pop(name)
    settings = {key: value for key, value in flatten(values).items() if is_used(result.method, key)}
    return run_config(result.method, settings)
