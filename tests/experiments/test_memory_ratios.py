"""A zeroth-order client holds what inference holds, on every kind of model."""

import dataclasses

import pytest

from leansplit.experiments.memory_ratios import (
    INFERENCE_IN_HALVES,
    NO_DROPOUT,
    SETTINGS,
    peaks,
    table,
)
from leansplit.server_app.planning import Problem
from tests.language import config_json

SMALL = {
    "CNN": {"batch_size": 8},
    "ResNet-18": {"options": {"width": 16}},  # so large that parts of 0.5 MiB do not matter
    "GPT-2 type with LoRA": {
        "problem": Problem.of_texts(24, "classes", 2),
        "options": {"source": config_json("gpt2", n_embd=64, **NO_DROPOUT)},
    },
}


# HO-SFL to inference: whole batches, half batches. Where smashed data are most of what is held, as
# at shallow cuts, lambda beside a whole pass shows; it is no more than that.
AT_MOST = {
    "CNN": (1.12, 1.18),  # of 4 images little is held but z
    "ResNet-18": (1.26, 1.05),
    "GPT-2 type with LoRA": (1.05, 1.05),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_probing_client_holds_beside_inference(name):
    setting = dataclasses.replace(SETTINGS[name], **SMALL[name])
    cut = "2" if setting.model == "language" else setting.cuts[0]
    found = peaks(setting, cut)
    whole, halves = AT_MOST[name]
    assert found["inference"] < found["HO-SFL"] <= whole * found["inference"]
    in_halves = found[INFERENCE_IN_HALVES]
    assert in_halves <= found["HO-SFL, half batches"] <= halves * in_halves
    assert found["HO-SFL"] < found["SFL"]
    assert found["HO-SFL, half batches"] < found["SFL, recomputing, half batches"]
    [_, _, row] = table({(name, cut): found})
    ratio = found["HO-SFL"] / found["inference"]
    assert row.startswith(f"| {name} | {cut} |") and f"| {ratio:.3f} |" in row
