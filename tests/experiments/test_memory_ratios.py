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


@pytest.mark.parametrize("name", SETTINGS)
def test_a_client_of_half_batches_takes_no_more_than_inference(name):
    setting = dataclasses.replace(SETTINGS[name], **SMALL[name])
    cut = "2" if setting.model == "language" else setting.cuts[0]
    found = peaks(setting, cut)
    assert found["HO-SFL, half batches"] <= 1.05 * found["inference"]
    assert found["HO-SFL"] > found["HO-SFL, half batches"]
    assert found["HO-SFL, half batches"] >= found[INFERENCE_IN_HALVES]
    assert found["HO-SFL, half batches"] < found["SFL"]
    [_, _, row] = table({(name, cut): found})
    ratio = found["HO-SFL"] / found["inference"]
    assert row.startswith(f"| {name} | {cut} |") and f"| {ratio:.3f} |" in row
