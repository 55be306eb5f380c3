"""Evaluation of texts: means over tokens, whatever the batches, in little memory."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from leansplit.costs import peak_tensor_bytes
from leansplit.models import build_model
from leansplit.sequences import IGNORED
from leansplit.server_app.evaluation import evaluate
from leansplit.tasks import load_task
from tests.language import config_json, write_pairs, write_texts


def task_and_model(task, name, **overrides):
    model = build_model(
        "language",
        input_shape=task.input_shape,
        num_classes=task.num_classes,
        seed=0,
        options={"source": config_json(name, **overrides), **task.model_options},
    )
    return task, model.train()


def pairs(folder, side, num_test=12):
    return load_task(
        "generation",
        data_path=write_pairs(folder, num_test=num_test),
        source_column="asked",
        target_column="wanted",
        tokenizer="bytes",
        padding_side=side,
    )


@pytest.mark.parametrize(("name", "side"), [("gpt2", "right"), ("llama", "left"), ("opt", "left")])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_perplexity_is_over_tokens_whatever_the_batches(name, side, batch_size, tmp_path):
    """By another route: the library's own logits of each row by itself, without padding."""
    task, model = task_and_model(pairs(tmp_path, side), name)
    found = evaluate(model, task, batch_size)
    assert model.training and not model.is_chunked
    model.eval()
    losses, hits = [], []
    for (ids, mask), labels in zip(task.test.inputs, task.test.labels, strict=True):
        with torch.no_grad():
            logits = model.inner(input_ids=ids[mask == 1][None]).logits[0]
        wanted = labels[mask == 1]
        losses += cross_entropy(logits, wanted, reduction="none")[wanted != IGNORED].tolist()
        hits += (logits.argmax(1) == wanted)[wanted != IGNORED].tolist()
    loss = math.fsum(losses) / len(losses)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.accuracy == pytest.approx(sum(hits) / len(hits))
    assert found.measures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_classes_do_not_depend_on_the_batches(side, tmp_path):
    texts = load_task("text", data_path=write_texts(tmp_path), tokenizer="bytes", padding_side=side)
    task, model = task_and_model(texts, "opt")
    every, one = evaluate(model, task, 100), evaluate(model, task, 1)
    assert every.accuracy == one.accuracy and every.measures == one.measures
    assert every.loss == pytest.approx(one.loss, rel=1e-5)


def test_logits_of_a_batch_are_never_held(tmp_path):
    task, model = task_and_model(pairs(tmp_path, "right", 60), "llama", vocab_size=9000)
    num_positions = len(task.test) * task.input_shape[1]
    held = peak_tensor_bytes(lambda: evaluate(model, task, 100))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert held - weights < num_positions * 9000 * 4 / 4
