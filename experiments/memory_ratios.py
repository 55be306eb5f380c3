"""What zeroth-order clients save, measured: peak memory of a step beside inference and beside SFL.

    python -m leansplit.experiments.memory_ratios

Each step is taken once on the CPU, on real tensors, and its live tensor storage is followed; see
docs/accounting.md for what is counted. Half batches: ``micro_batch`` of half a batch, that is half
of it is run at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer

from leansplit.costs.units import MIB
from leansplit.models import build_model, split_at
from leansplit.server_app.client_costs import forward_step, measure
from leansplit.server_app.config import run_config
from leansplit.server_app.methods import METHODS
from leansplit.server_app.planning import Problem

_GPT2 = {"model_type": "gpt2", "n_embd": 256, "n_layer": 8, "n_head": 4, "vocab_size": 8192}
_GPT2 |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # for micro-batches


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, where it is cut, and what a client trains it on."""

    model: str
    cuts: Sequence[str]
    problem: Problem
    batch_size: int
    options: Mapping[str, Any] = field(default_factory=dict)


_IMAGES = Problem(input_shape=(3, 32, 32), num_classes=10)
SETTINGS: Mapping[str, Setting] = {
    "CNN": Setting(
        model="cifar-cnn", cuts=("pool1", "pool2", "pool4"), problem=_IMAGES, batch_size=64
    ),
    "ResNet-18": Setting(
        model="resnet18",
        cuts=("layer1.0", "layer1", "layer2"),
        problem=_IMAGES,
        batch_size=32,
    ),
    "GPT-2 type with LoRA": Setting(
        model="language",
        cuts=("2", "4", "6"),
        problem=Problem.of_texts(128, "classes", 2),
        batch_size=8,
        options={"source": json.dumps(_GPT2 | NO_DROPOUT)},
    ),
}


def clients(batch_size: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return column -> (method, settings) of the clients that are compared."""
    recomputing = {"client_backward": "recompute"}
    return {
        "inference": ("frozen", {}),
        "HO-SFL": ("ho-sfl", {}),
        "HO-SFL, half batches": ("ho-sfl", {"micro_batch": batch_size // 2}),
        "SFL": ("sflv2", {}),
        "SFL, recomputing": ("sflv2", recomputing),
        "SFL, recomputing, half batches": ("sflv2", recomputing | {"micro_batch": batch_size // 2}),
    }


INFERENCE_IN_HALVES = "inference, half batches"


def peaks(setting: Setting, cut: str) -> dict[str, int]:
    """Return column -> peak memory of one client step in bytes; optimizers are plain SGD."""
    inputs, labels = setting.problem.batch(setting.batch_size)
    found = {}
    for column, (method, options) in clients(setting.batch_size).items():
        config = run_config(method, {"batch_size": setting.batch_size, **options})
        model = build_model(
            setting.model,
            input_shape=setting.problem.input_shape,
            num_classes=setting.problem.num_classes,
            seed=0,
            options={**setting.problem.model_options, **setting.options},
        )
        split = split_at(model, cut)
        step = METHODS[method].client_step(
            config.method_config(), split, setting.problem.loss, inputs, labels
        )
        found[column] = measure(step).peak_memory_bytes
        if method == "frozen":
            in_halves = forward_step(split, inputs, setting.batch_size // 2)
            found[INFERENCE_IN_HALVES] = measure(in_halves).peak_memory_bytes
    return found


def table(results: Mapping[tuple[str, str], Mapping[str, int]]) -> list[str]:
    """Return a markdown table: (architecture, cut) -> peaks, and ratios to inference and to SFL.

    "halves / whole" is HO-SFL in half batches to inference of the whole batch.
    """
    columns = [*clients(2)]
    columns.insert(1, INFERENCE_IN_HALVES)
    header = ["Model", "Cut", *(f"{column} (MiB)" for column in columns)]
    header += ["whole / whole", "halves / whole", "halves / halves"]
    header += ["against SFL", "against recomputing SFL"]
    rows = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for (name, cut), found in results.items():
        whole, halves = found["HO-SFL"], found["HO-SFL, half batches"]
        inference, in_halves = found["inference"], found[INFERENCE_IN_HALVES]
        pairs = ((whole, inference), (halves, inference), (halves, in_halves))
        ratios = [f"{peak / bare:.3f}" for peak, bare in pairs]
        rivals = ((whole, "SFL"), (halves, "SFL, recomputing, half batches"))
        changes = [f"{own / found[rival] - 1:+.0%}" for own, rival in rivals]
        sizes = [f"{found[column] / MIB:,.2f}" for column in columns]
        rows.append([name, cut, *sizes, *ratios, *changes])
    return ["| " + " | ".join(row) + " |" for row in rows]


def main(
    only: Annotated[list[str] | None, typer.Option(help="Models; default: all.")] = None,
) -> None:
    """Print the table, and which torch measured it."""
    torch.set_num_threads(1)
    results = {
        (name, cut): peaks(setting, cut)
        for name, setting in SETTINGS.items()
        if not only or name in only
        for cut in setting.cuts
    }
    typer.echo("\n".join(table(results)))
    typer.echo(f"\ntorch {torch.__version__}, CPU")


if __name__ == "__main__":
    typer.run(main)
