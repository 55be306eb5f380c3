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


def export_run(run_dir: Path, out_dir: Path) -> None:
    """Write the final model of a run with its adapters merged, and its tokenizer if it has one.

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
    model = workload.build_model(workload.load_task())
    whole = model.full_model
    if not isinstance(whole, WholeLanguageModel):
        raise UserError(
            f"the model {result.config['model']!r} is no language model; its weights are in "
            f"{weights}, under the unsplit model's names"
        )
    model.load_full_state_dict(safetensors.torch.load_file(weights))
    # Takes seconds to import, and most commands need none of it.
    from leansplit.models.language.export import save_merged, save_tokenizer

    save_merged(whole, out_dir)
    save_tokenizer(str(result.config["task_options"].get("tokenizer", "")), out_dir)


def config_of(result: RunResult) -> RunConfig:
    """Return the configuration that a run had."""
    values: dict[str, Any] = dict(result.config)
    values |= values.pop("options")
    for name in ("method", "initial_weights_digest"):
        values.pop(name)
    settings = {key: value for key, value in flatten(values).items() if is_used(result.method, key)}
    return run_config(result.method, settings)
