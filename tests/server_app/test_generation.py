"""Texts that a model goes on with: room, positions, what its own settings may not do."""

import pytest
import torch
from transformers import GenerationConfig

from leansplit.models import build_model
from leansplit.server_app.generation import Written, write_texts
from leansplit.tasks.task import Generation
from leansplit.tasks.tokens import ByteTokenizer
from tests.language import config_json

BYTES = ByteTokenizer()


def model_of(name="gpt2", **sizes):
    """A model that never ends a text by itself."""
    model = build_model(
        "language",
        input_shape=(2, 9),
        num_classes=0,
        seed=1,
        options={"source": config_json(name, **sizes), "outputs": "tokens"},
    ).train()
    with torch.no_grad():  # the hidden state times the table of embeddings
        model.inner.get_input_embeddings().weight[BYTES.eos_id] = 0.0
    return model


def generation(prompts, max_length):
    return Generation(
        tokenizer=BYTES,
        prompts=tuple(prompts),
        references=tuple("It is good." for _ in prompts),
        max_length=max_length,
    )


def num_tokens(text):
    return len(text.encode(errors="replace"))


def greedy(model, prompt, num_new):
    """The likeliest token again and again, without a cache."""
    row = BYTES.encode_plain([prompt])[0]
    model.eval()
    with torch.no_grad():
        for _ in range(num_new):
            ids = torch.tensor([row])
            tokens = torch.stack([ids, torch.ones_like(ids)], 1)
            row.append(int(model(tokens)[0, -1].argmax()))
    model.train()
    return row[len(prompt.encode()) :]


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gemma3_text"])
def test_what_is_written_is_the_likeliest_whatever_stands_beside_it(name):
    model = model_of(name)
    prompts = ["ab", "a much longer prompt"]
    written = write_texts(model, generation(prompts, 30), batch_size=2, at_most=2)
    assert model.training and written.prompts == prompts
    wanted = greedy(model, "ab", 10)
    ended = wanted.index(BYTES.eos_id) if BYTES.eos_id in wanted else len(wanted)
    assert written.texts[0] == BYTES.decode(wanted[:ended]).strip()


@pytest.mark.parametrize("prompt", ["ab", "x" * 200])
def test_no_more_positions_than_the_model_has(prompt):
    """max_length says 128, the model takes 24: a run of short texts does not end in an error."""
    model = model_of(n_positions=24)
    written = write_texts(model, generation([prompt], 128), batch_size=1, at_most=1)
    assert len(written.texts) == 1 and num_tokens(written.texts[0]) <= 3 * 24


def test_a_long_prompt_leaves_room():
    calls = []
    model = model_of()
    generate = model.inner.generate
    model.inner.generate = lambda **given: calls.append(given) or generate(**given)
    write_texts(model, generation(["x" * 100], 40), batch_size=1, at_most=1)
    assert (
        calls[0]["input_ids"].shape == (1, 30)
        and calls[0]["generation_config"].max_new_tokens == 10
    )


def test_a_model_s_own_settings_change_nothing():
    model = model_of()
    asked = generation(["ab", "cd"], 20)
    plain = write_texts(model, asked, batch_size=2, at_most=2)
    own = GenerationConfig(do_sample=True, repetition_penalty=9.0, min_new_tokens=3, top_k=2)
    model.inner.generation_config = own
    model.inner.config.num_beams = 3  # as old files of models have it
    assert write_texts(model, asked, batch_size=2, at_most=2) == plain
    assert model.inner.generation_config is own


def test_scores_of_what_was_wanted():
    wanted = ["Aromi is a pub by the river.", "There is a pub, Aromi."]
    right = Written(["a", "b"], [wanted[0], wanted[1]], [wanted, wanted[1:]])
    assert right.scores() == pytest.approx({"bleu": 100.0, "rouge_l": 100.0})
    half = Written(["a"], ["Aromi is a"], [["Aromi is a pub by river"]])
    # ROUGE-L: 3 words in common, of 3 and of 6: 2 * (1 * 1/2) / (1 + 1/2)
    assert half.scores()["rouge_l"] == pytest.approx(100 * 2 / 3)
