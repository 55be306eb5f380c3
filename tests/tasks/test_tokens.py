"""Tokenizers as their owners save them: special tokens, prompts, and what is cut."""

import pandas as pd
import pytest
from tokenizers import processors

from leansplit.errors import UserError
from leansplit.sequences import IGNORED
from leansplit.tasks import load_task
from leansplit.tasks.tokens import ByteTokenizer, load_tokenizer, prompt_rows, without_beginning
from tests.language import write_texts

WORDS = ["<unk>", "<pad>", "<begin>", "<end>", "good", "bad", "film", "It", "was", "very"]
BEGIN, END = WORDS.index("<begin>"), WORDS.index("<end>")


def ids(text):
    return [WORDS.index(word) if word in WORDS else 0 for word in text.split()]


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a tokenizer of whole words around given special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def save(single="$A", pair="$A $B", **special):
        vocabulary = {word: at for at, word in enumerate(WORDS)}
        special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"} | special
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("<begin>", BEGIN), ("<end>", END)]
        )
        folder = str(tmp_path / "tokenizer")
        known = {name: token for name, token in special.items() if token}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **known).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize(
    ("single", "begin"),
    [("$A", ()), ("<begin> $A", (BEGIN,)), ("<begin> $A <end>", (BEGIN,)), ("$A <end>", ())],
)
def test_what_begins_every_text_begins_a_prompt(single, begin, saved):
    """As Llama's and OPT's begin token, without which they were never trained; no end token."""
    tokenizer = load_tokenizer(saved(single))
    assert tokenizer.begin == begin
    assert prompt_rows(tokenizer, ["good film"]) == [[*begin, *ids("good film")]]


def test_a_prompt_keeps_its_end_and_what_begins_it(saved):
    tokenizer = load_tokenizer(saved("<begin> $A"))
    [row] = prompt_rows(tokenizer, ["very good film It was"])
    for at_most in range(1, 9):
        kept = without_beginning(row, at_most, tokenizer)
        text = ids("very good film It was")
        assert kept == [BEGIN, *text[max(0, len(text) - at_most + 1) :]]
    assert without_beginning([], 4, ByteTokenizer()) == [ByteTokenizer.eos_id]
    assert without_beginning([5, 6, 7], 2, ByteTokenizer()) == [6, 7]


def test_prompts_of_tasks_begin_as_the_model_knows_it(saved, tmp_path):
    for name in ("train", "test"):
        frame = pd.DataFrame({"text": ["good film", "bad film"], "label": [1, 0]})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    given = {"data_path": tmp_path, "tokenizer": saved("<begin> $A")}
    words = {"prompt": "{text} It was", "verbalizer": ["bad", "good"]}
    task = load_task("text", **given, **words)
    assert task.train.inputs[0, 0].tolist() == [BEGIN, *ids("good film It was")]
    task = load_task("text", **given, **words, max_length=3)
    assert task.train.inputs[0, 0].tolist() == [BEGIN, *ids("It was")]
    columns = {"source_column": "text", "target_column": "text", "template": "{text} was"}
    task = load_task("generation", **given, **columns)
    assert task.train.inputs[0, 0].tolist() == [BEGIN, *ids("good film was good film")]
    wanted = [IGNORED] * 3 + [*ids("good film"), END]
    assert task.train.labels[0].tolist() == wanted
    task = load_task("generation", **given, **columns, max_length=4)
    assert task.train.inputs[0, 0].tolist() == [BEGIN, *ids("was good film")]


def test_an_end_token_that_stands_for_unknown_words_pads(saved):
    """GPT-2's tokenizer has one special token, for everything."""
    folder = saved(unk_token="<end>", pad_token="")
    assert load_tokenizer(folder, "eos").pad_id == END
    assert load_tokenizer(folder, "<end>").pad_id == END
    with pytest.raises(UserError, match="no token '<stop>' to pad with"):
        load_tokenizer(folder, "<stop>")


def test_long_texts_lose_their_end_and_no_special_token(saved):
    tokenizer = load_tokenizer(saved("<begin> $A <end>", "<begin> $A <end> $B <end>"))
    assert tokenizer.encode(["very good film"], None, 4) == [[BEGIN, *ids("very good"), END]]
    bare = load_tokenizer(saved())
    assert bare.encode(["very good film"], None, 2) == [ids("very good")]
    with pytest.raises(UserError, match="max_length is 2, but the tokenizer adds 2 special tokens"):
        tokenizer.encode(["good"], None, 2)


@pytest.mark.parametrize("at_most", [12, 11, 9, 7, 6, 5])
def test_the_longer_text_of_a_pair_is_cut_first(at_most, saved):
    """Cutting the row's end would take all of the second text, and the token between them."""
    tokenizer = load_tokenizer(saved("<begin> $A", "<begin> $A <end> $B <end>"))
    first, second = "good film It was very good film", "bad"
    [row] = tokenizer.encode([first], [second], at_most)
    assert row == [BEGIN, *ids(first)[: at_most - 4], END, *ids(second), END]
    [row] = ByteTokenizer().encode(["abcdefgh"], ["x"], at_most)
    end = ByteTokenizer.eos_id
    assert row == [*(ord(c) + 2 for c in "abcdefgh"[: at_most - 3]), end, ord("x") + 2, end]


def test_bytes_of_pairs_share_the_room():
    rows = [
        ByteTokenizer().encode(["a" * n], ["b" * m], 10)[0] for n, m in [(9, 9), (9, 2), (2, 9)]
    ]
    counts = [(row.count(ord("a") + 2), row.count(ord("b") + 2)) for row in rows]
    assert counts == [(4, 4), (6, 2), (2, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{} {sentence}"}, r"'\{\} \{sentence\}' cannot be filled.*Replacement index 0"),
        ({"prompt": "{sentence:d}"}, "cannot be filled: Unknown format code 'd'"),
        (
            {"prompt": "{sentence}", "pair_column": "label"},
            "pair_column does nothing with a prompt",
        ),
    ],
)
def test_templates_that_cannot_be_filled(options, message, tmp_path):
    given = {"data_path": write_texts(tmp_path), "tokenizer": "bytes", "verbalizer": ["a", "b"]}
    with pytest.raises(UserError, match=message) as caught:
        load_task("text", **given, **options)
    assert "\n" not in str(caught.value)


def test_braces_of_the_text_itself(tmp_path):
    given = {"data_path": write_texts(tmp_path), "tokenizer": "bytes", "verbalizer": ["a", "b"]}
    task = load_task("text", prompt="{{{sentence}}}", **given)
    mask = task.train.inputs[0, 1] == 1
    text = ByteTokenizer().decode(task.train.inputs[0, 0][mask].tolist())
    assert text == "{" + pd.read_csv(tmp_path / "train.csv")["sentence"][0] + "}"
