"""Text tasks: columns, prompts, tokens, labels and what they refuse."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn.functional import cross_entropy

from leansplit.errors import UserError
from leansplit.sequences import IGNORED
from leansplit.tasks import load_task
from leansplit.tasks.text_metrics import (
    Verbalizer,
    macro_f1,
    num_wanted,
    token_accuracy,
    token_loss,
)
from leansplit.tasks.tokens import ByteTokenizer, load_tokenizer
from tests.language import write_pairs, write_texts

BYTES = ByteTokenizer()
needs_data = pytest.mark.skipif("LEANSPLIT_DATA" not in os.environ, reason="needs LEANSPLIT_DATA")


def text_task(folder, **options):
    return load_task("text", data_path=folder, tokenizer="bytes", **options)


def rows(examples):
    """The tokens of each row without padding."""
    return [ids[mask == 1].tolist() for ids, mask in zip(*examples.inputs.unbind(1), strict=True)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_become_tokens_and_their_mask(side, tmp_path):
    task = text_task(write_texts(tmp_path), padding_side=side)
    frame = pd.read_csv(tmp_path / "train.csv")
    wanted = [[*(byte + 2 for byte in text.encode()), 1] for text in frame["sentence"]]
    assert rows(task.train) == wanted
    assert task.train.labels.tolist() == frame["label"].tolist()
    assert task.input_shape == (2, max(map(len, wanted))) and task.num_classes == 2
    first = task.train.inputs[0, 1]
    assert first[0 if side == "right" else -1] == 1
    assert (task.train.inputs[:, 0][task.train.inputs[:, 1] == 0] == BYTES.pad_id).all()
    assert task.model_options["outputs"] == "classes"
    assert task.model_options["num_tokens"] == 1 + max(max(ids) for ids in rows(task.train))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_tables_of_every_kind_give_the_same_task(suffix, tmp_path):
    write_texts(tmp_path)
    wanted = text_task(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train", "test"):
        frame = pd.read_csv(tmp_path / f"{name}.csv")
        if suffix == "csv":
            frame.to_csv(other / f"{name}.csv", index=False)
        elif suffix == "jsonl":
            frame.to_json(other / f"{name}.jsonl", orient="records", lines=True)
        else:
            frame.to_parquet(other / f"{name}.parquet")
    got = text_task(other)
    assert torch.equal(got.train.inputs, wanted.train.inputs)
    assert torch.equal(got.test.labels, wanted.test.labels)


def test_pairs_and_named_columns(tmp_path):
    for name in ("train", "test"):
        pd.DataFrame({"a": ["x", "yy"], "b": ["q", "rr"], "kind": ["no", "yes"]}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    task = text_task(tmp_path, text_column="a", pair_column="b", label_column="kind")
    assert rows(task.train)[1] == [
        *BYTES.encode_plain(["yy"])[0],
        1,
        *BYTES.encode_plain(["rr"])[0],
        1,
    ]
    assert task.class_names == ("no", "yes")
    with pytest.raises(UserError, match="several columns hold text; name one with text_column"):
        text_task(tmp_path, label_column="kind")
    with pytest.raises(UserError, match=r"no column 'aa'.*did you mean 'a'"):
        text_task(tmp_path, text_column="aa", label_column="kind")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"id": [1, 2], "text": ["x", "y"], "label": ["no", "yes"]}, ("x", "yes")),
        ({"text": ["x", "y"], "label": ["no", "yes"]}, ("x", "yes")),
        ({"label": ["x", "y"], "class": [3, 4]}, ("x", "4")),
        ({"text": ["x", "y"], "label": [False, True]}, ("x", "True")),
    ],
)
def test_labels_that_are_words_are_found(columns, found, tmp_path):
    for name in ("train", "test"):
        pd.DataFrame(columns).to_csv(tmp_path / f"{name}.csv", index=False)
    task = text_task(tmp_path)
    assert BYTES.decode(rows(task.train)[0]) == found[0] and task.class_names[1] == found[1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"id": [1, 2, 3], "review": ["x", "y", "z"], "stars": ["no", "yes", "no"]},
            r"several columns hold text; name one .*review \(.*stars \(",
        ),
        (
            {"id": [1, 2, 3], "review": ["x", "y", "z"]},
            r"no column looks like labels; .*id \(int64\), review",
        ),
        (
            {"label": [1, 2, 3], "review": ["x", "y", "z"]},
            "column 'label' holds another label in every training row",
        ),
        (
            {"label": [1, 2, None], "review": ["x", "y", "z"]},
            r"no column looks like labels; .*label \(float64\)",
        ),
        (
            {"label": [1, 2, 1], "review": ["x", None, "z"]},
            r"1 missing values, the first in row 1 .*CSV files words such as NA",
        ),
    ],
)
def test_columns_that_say_nothing_are_one_line_errors(columns, message, tmp_path):
    for name in ("train", "test"):
        pd.DataFrame(columns).to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(UserError, match=message) as caught:
        text_task(tmp_path)
    assert "\n" not in str(caught.value)


def test_texts_without_a_token_are_refused(tmp_path):
    folder = saved_tokenizer(tmp_path, pad_token="<pad>")  # which adds no token of its own
    for name in ("train", "test"):
        pd.DataFrame({"text": ["", " "], "label": [0, 1]}).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match="all texts are empty: none holds a token"):
        load_task("text", data_path=tmp_path, tokenizer=folder)


def test_long_texts_are_cut(tmp_path):
    full = text_task(write_texts(tmp_path))
    task = text_task(tmp_path, max_length=6)
    assert task.input_shape == (2, 6)
    for cut, whole in zip(rows(task.train), rows(full.train), strict=True):
        assert cut == (whole if len(whole) <= 6 else [*whole[:5], BYTES.eos_id])


def test_a_prompt_asks_for_the_next_token(tmp_path):
    task = text_task(
        write_texts(tmp_path), prompt="{sentence} It was", verbalizer=["bad", "good"], max_length=12
    )
    frame = pd.read_csv(tmp_path / "train.csv")
    wanted = [BYTES.encode_plain([f"{text} It was"])[0][-12:] for text in frame["sentence"]]
    assert rows(task.train) == wanted
    assert task.model_options["outputs"] == "next_token"
    logits = torch.randn(4, 258)
    labels = torch.tensor([0, 1, 1, 0])
    ids = [ord("b") + 2, ord("g") + 2]
    torch.testing.assert_close(task.loss(logits, labels), cross_entropy(logits[:, ids], labels))
    hits = (logits[:, ids].argmax(1) == labels).float().mean()
    assert task.metric(logits, labels) == pytest.approx(float(hits))
    assert torch.equal(task.predict(logits), logits[:, ids].argmax(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{sentence}:", "verbalizer": ["no"]}, "1 words, but the labels are 2 classes"),
        ({"prompt": "{sentence}:", "verbalizer": [" a", " b"]}, "begins with the same token"),
        ({"prompt": "{sentence}:", "verbalizer": ["", "b"]}, "or with none"),
        ({"prompt": "{sentense}:", "verbalizer": ["a", "b"]}, "did you mean 'sentence'"),
        ({"prompt": "It was", "verbalizer": ["a", "b"]}, "names no column in braces"),
        ({"prompt": "{sentence", "verbalizer": ["a", "b"]}, "cannot be read"),
        ({"prompt": "{sentence}:", "verbalizer": "no"}, r"must be a list such as .*, got 'no'"),
        ({"verbalizer": ["a", "b"]}, "give a prompt too, such as '{sentence} It was'"),
        ({"max_length": 1}, "max_length must be at least 2, got 1"),
        ({"padding_side": "middle"}, "unknown padding_side 'middle'"),
        ({"dataset": "also"}, "got both"),
        ({"label_column": "nothing"}, "no column 'nothing'"),
        ({"tokenizer": ""}, "needs a tokenizer: name a model"),
        ({"tokenizer": "/nowhere"}, "there is no folder '/nowhere'"),
        ({"tokenizer": "package:not_there/model"}, "needs the package not_there"),
    ],
)
def test_what_cannot_be_read_is_a_one_line_error(options, message, tmp_path):
    given = {"data_path": write_texts(tmp_path), "tokenizer": "bytes"} | options
    with pytest.raises(UserError, match=message) as caught:
        load_task("text", **given)
    assert "\n" not in str(caught.value)


def saved_tokenizer(folder, **special):
    """A tokenizer of whole words, saved as the transformers library does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "<end>", "good", "bad", "film"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)
    fast.save_pretrained(folder)
    return str(folder)


def test_a_saved_tokenizer(tmp_path):
    tokenizer = load_tokenizer(saved_tokenizer(tmp_path, pad_token="<pad>", eos_token="<end>"))
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id) == (1, 2, 0)
    assert tokenizer.encode(["good film", "odd"], None, 9) == [[3, 5], [0]]
    assert tokenizer.encode_plain([]) == []
    assert tokenizer.decode([3, 5, 1]) == "good film"


def test_a_tokenizer_without_padding_token(tmp_path):
    folder = saved_tokenizer(tmp_path, eos_token="<end>")
    with pytest.raises(UserError, match=r"has no padding token; set task_options\.pad_token"):
        load_tokenizer(folder)
    assert load_tokenizer(folder, "eos").pad_id == 2
    assert load_tokenizer(folder, "film").pad_id == 5
    with pytest.raises(UserError, match="no token 'filn' to pad with"):
        load_tokenizer(folder, "filn")


def test_words_must_be_known(tmp_path):
    folder = saved_tokenizer(tmp_path, pad_token="<pad>")
    words = {"prompt": "{sentence}", "verbalizer": ["bad", "awful"], "tokenizer": folder}
    with pytest.raises(UserError, match="'awful' is not in the tokenizer's vocabulary"):
        load_task("text", data_path=write_texts(tmp_path), **words)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="it knows no token"):  # transformers makes an empty one
        load_tokenizer(str(tmp_path / "none"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_of_a_generation_task_is_on_the_target_alone(side, tmp_path):
    task = load_task(
        "generation",
        data_path=write_pairs(tmp_path),
        source_column="asked",
        target_column="wanted",
        tokenizer="bytes",
        padding_side=side,
    )
    frame = pd.read_csv(tmp_path / "train.csv")
    for at, (asked, wanted) in enumerate(zip(frame["asked"], frame["wanted"], strict=True)):
        prompt, target = BYTES.encode_plain([asked + "\n", wanted])
        used = task.train.inputs[at, 1] == 1
        assert task.train.inputs[at, 0][used].tolist() == [*prompt, *target]
        labels = task.train.labels[at][used].tolist()
        assert labels == [IGNORED] * (len(prompt) - 1) + [*target, BYTES.eos_id]
        assert (task.train.labels[at][~used] == IGNORED).all()
    assert task.num_classes == 0 and task.model_options["outputs"] == "tokens"
    assert task.generation.prompts[0] == pd.read_csv(tmp_path / "test.csv")["asked"][0] + "\n"


def test_a_long_prompt_loses_its_beginning(tmp_path):
    for name in ("train", "test"):
        pd.DataFrame({"a": ["abcdefghij"], "b": ["xyz"]}).to_csv(tmp_path / f"{name}.csv")
    task = load_task(
        "generation", data_path=tmp_path, source_column="a", target_column="b", tokenizer="bytes",
        max_length=6,
    )  # fmt: skip
    assert BYTES.decode(task.train.inputs[0, 0].tolist()) == "ij\nxyz"
    assert BYTES.decode(task.train.labels[0, 2:5].tolist()) == "xyz"
    assert task.train.labels[0].tolist()[:2] == [IGNORED] * 2


def test_generation_needs_its_columns(tmp_path):
    folder = write_pairs(tmp_path)
    with pytest.raises(UserError, match=r"needs source_column=<column>; columns: asked, wanted"):
        load_task("generation", data_path=folder, tokenizer="bytes", target_column="wanted")


def test_token_metrics_are_means_over_wanted_tokens():
    logits = torch.randn(2, 5, 7)
    labels = torch.tensor([[IGNORED, 3, 1], [2, IGNORED, IGNORED]])
    kept = logits[:, :3][labels != IGNORED]
    wanted = labels[labels != IGNORED]
    torch.testing.assert_close(token_loss(logits, labels), cross_entropy(kept, wanted))
    assert num_wanted(labels) == 3
    assert token_accuracy(logits, labels) == pytest.approx(
        float((kept.argmax(1) == wanted).float().mean())
    )
    nothing = torch.full((1, 3), IGNORED)
    assert float(token_loss(logits[:1], nothing)) == 0.0 and num_wanted(nothing) == 1


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_logits_keep_their_digits(precision):
    """A zeroth-order estimate is the difference of two losses: two digits would leave nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 9, generator=generator).to(precision)
    labels = torch.randint(0, 9, (4, 6), generator=generator)
    loss = token_loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, token_loss(logits.float(), labels), atol=0, rtol=0)
    choice = Verbalizer((3, 5))
    value = choice.loss(logits[:, 0], labels[:, 0] % 2)
    assert value.dtype == torch.float32
    assert value == choice.loss(logits[:, 0].float(), labels[:, 0] % 2)


def test_macro_f1_is_scikit_learns():
    generator = np.random.default_rng(0)
    predicted, labels = (torch.from_numpy(generator.integers(0, 3, 50)) for _ in range(2))
    wanted = f1_score(labels.numpy(), predicted.numpy(), average="macro")
    assert macro_f1(predicted, labels)["f1"] == pytest.approx(wanted)


def test_a_verbalizer_scores_the_classes_tokens():
    choice = Verbalizer((5, 2))
    logits = torch.arange(6.0).repeat(2, 1)
    assert choice.scores(logits).tolist() == [[5.0, 2.0]] * 2
    assert choice.predict(logits).tolist() == [0, 0]


@needs_data
@pytest.mark.data
def test_sst2_and_e2e_as_they_are():
    task = load_task("sst2", tokenizer="bytes", max_train=50, max_test=20)
    assert (task.name, task.num_classes, len(task.train)) == ("sst2", 2, 50)
    assert task.class_names in {("negative", "positive"), ("0", "1")}
    task = load_task("e2e", tokenizer="bytes", max_train=20, max_test=10, max_length=400)
    assert task.num_classes == 0 and "name[" in task.generation.prompts[0]
    assert Path(os.environ["LEANSPLIT_DATA"]).is_dir()
