"""Text as tasks: classification by a head or by the next token, and generation.

Data come from local files (parquet, CSV, JSON lines) or the Hugging Face hub, like images'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leansplit.errors import UserError, did_you_mean
from leansplit.sequences import IGNORED
from leansplit.tasks.columns import (
    find_text_columns,
    read_labels,
    read_texts,
    require_text_column,
)
from leansplit.tasks.images import subset_of
from leansplit.tasks.source import SplitPair, find_local, read_hub, read_local
from leansplit.tasks.task import Examples, Generation, Task
from leansplit.tasks.text_metrics import (
    Verbalizer,
    macro_f1,
    num_wanted,
    token_accuracy,
    token_loss,
)
from leansplit.tasks.tokens import (
    PaddingSide,
    Tokenizer,
    load_tokenizer,
    padded,
    prompt_rows,
    tokens,
    without_beginning,
)


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How texts become rows of tokens."""

    tokenizer: Tokenizer
    max_length: int
    padding_side: PaddingSide

    def __post_init__(self) -> None:
        """Refuse lengths that leave no room."""
        if self.max_length < 2:
            raise UserError(f"max_length must be at least 2, got {self.max_length}")

    def length(self, rows: Sequence[Sequence[int]]) -> int:
        """Return the longest row's length, at most ``max_length``."""
        longest = max((len(row) for row in rows), default=1)
        if not longest:
            raise UserError("all texts are empty: none holds a token; check the text column")
        return min(self.max_length, longest)

    def inputs(self, rows: Sequence[Sequence[int]], length: int) -> Tensor:
        """Return ids and mask [n, 2, length]."""
        return tokens(rows, self.tokenizer.pad_id, self.padding_side, length)


def build_text_task(
    *,
    data_path: str | Path | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    prompt: str = "",
    verbalizer: Sequence[str] = (),
    tokenizer: str = "",
    pad_token: str = "",
    max_length: int = 128,
    padding_side: PaddingSide = "right",
    max_train: int | None = None,
    max_test: int | None = None,
    name: str = "text",
) -> Task:
    """Return a task of labelled texts: classes by a head, or with ``prompt`` by the next token.

    Args:
        data_path: a folder of parquet, CSV or JSON-lines files (train.parquet, ...), or one file.
        dataset: a data set's name on the Hugging Face hub; give this or ``data_path``.
        dataset_config: the hub data set's configuration, where it has several.
        text_column: inferred where None: the only column of text.
        pair_column: a second column of text; the two are encoded as a pair.
        label_column: inferred where None, as for images.
        train_split: inferred where None: train.
        test_split: inferred where None: test, else validation.
        prompt: a template with column names in braces, such as ``{sentence} It was``; the class is
            the verbalizer's word that the model expects next (as in MeZO, arXiv 2305.17333).
        verbalizer: a word for each class, whose first token counts; with ``prompt``. Words stand
            right behind the prompt: " great" with its space, where the tokenizer tells them apart.
        tokenizer: a name on the hub, a folder, or ``bytes``; "" = the model's.
        pad_token: what to pad with where the tokenizer has no padding token; ``eos`` or a token.
        max_length: longer rows are cut: a prompt's beginning, else the end, of a pair the longer
            text's.
        padding_side: ``right`` or ``left``.
        max_train: use only this many training texts: a fixed random subset.
        max_test: the same for test texts.
        name: the task's name in results.

    Raises:
        UserError: if data, columns, prompt or tokenizer do not fit; it says what to change.
    """
    splits, provenance = load_splits(
        name, data_path, dataset, dataset_config, train_split=train_split, test_split=test_split
    )
    form = TextFormat(
        tokenizer=load_tokenizer(tokenizer, pad_token),
        max_length=max_length,
        padding_side=padding_side,
    )
    train, test = splits
    if prompt and text_column is None:
        text_column = _first_field(prompt, train.features)
    text_column, label_column = find_text_columns(
        train.features, text_column=text_column, label_column=label_column
    )
    if pair_column is not None:
        if prompt:
            raise UserError(
                f"pair_column does nothing with a prompt; name it there, as in '{{{text_column}}} "
                f"{{{pair_column}}}', and leave it out"
            )
        require_text_column(train.features, pair_column, "pair_column")
    train_labels, test_labels, class_names = read_labels(train, test, label_column)
    if 2 < len(train) == len(class_names):
        raise UserError(
            f"column {label_column!r} holds another label in every training row, so there is "
            "nothing to learn from; name the labels' column with label_column=..."
        )
    if verbalizer and not prompt:
        raise UserError(
            "verbalizer is for classification by the next token: give a prompt too, such as "
            f"'{{{text_column}}} It was', or leave it out"
        )
    choice = _verbalizer(form.tokenizer, verbalizer, class_names) if prompt else None

    def rows_of(split: Any, which: str) -> list[list[int]]:
        if prompt:
            asked = prompt_rows(form.tokenizer, _filled(prompt, split, which))
            return [without_beginning(row, max_length, form.tokenizer) for row in asked]
        texts = read_texts(split, text_column, which)
        pairs = None if pair_column is None else read_texts(split, pair_column, which)
        return form.tokenizer.encode(texts, pairs, max_length)

    parts = [
        (split.select(kept), labels[kept], which)
        for split, labels, which, limit in (
            (train, train_labels, "training", max_train),
            (test, test_labels, "test", max_test),
        )
        for kept in [subset_of(len(split), limit)]
    ]
    rows = [rows_of(split, which) for split, _, which in parts]
    length = form.length([row for part in rows for row in part])
    examples = [
        Examples(form.inputs(part, length), torch.from_numpy(np.ascontiguousarray(labels)))
        for part, (_, labels, _) in zip(rows, parts, strict=True)
    ]
    shared: dict[str, Any] = {
        "name": name,
        "num_classes": len(class_names),
        "input_shape": (2, length),
        "class_names": class_names,
        "train": examples[0],
        "test": examples[1],
        "notes": provenance,
        "measures": macro_f1,
    }
    num_tokens = _num_tokens(part.inputs[:, 0] for part in examples)
    if choice is None:
        options = {"outputs": "classes", "num_tokens": num_tokens}
        return Task(**shared, model_options=options)
    num_tokens = max(num_tokens, 1 + max(choice.token_ids))
    return Task(
        **shared,
        model_options={"outputs": "next_token", "num_tokens": num_tokens},
        loss=choice.loss,
        metric=choice.accuracy,
        predict=choice.predict,
    )


def build_generation_task(
    *,
    data_path: str | Path | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    template: str = "",
    train_split: str | None = None,
    test_split: str | None = None,
    tokenizer: str = "",
    pad_token: str = "",
    max_length: int = 128,
    padding_side: PaddingSide = "right",
    max_train: int | None = None,
    max_test: int | None = None,
    name: str = "generation",
) -> Task:
    """Return a task of texts to continue: the loss is on the target alone.

    A row is the prompt's tokens, the target's and the end token; accuracy is that of the target's
    tokens, each predicted from what comes before it.

    Args:
        data_path: see :func:`build_text_task`, as for all that is not named here.
        dataset: see there.
        dataset_config: see there.
        source_column: the column that the prompt is made of.
        target_column: the column of the wanted text.
        template: the prompt, with column names in braces; "" = the source and a line break.
        train_split: see there.
        test_split: see there.
        tokenizer: see there.
        pad_token: see there.
        max_length: of prompt and target together; a longer prompt loses its beginning.
        padding_side: see there.
        max_train: see there.
        max_test: see there.
        name: the task's name in results.

    Raises:
        UserError: as :func:`build_text_task`.
    """
    splits, provenance = load_splits(
        name, data_path, dataset, dataset_config, train_split=train_split, test_split=test_split
    )
    form = TextFormat(
        tokenizer=load_tokenizer(tokenizer, pad_token),
        max_length=max_length,
        padding_side=padding_side,
    )
    train, test = splits
    for column, option in ((source_column, "source_column"), (target_column, "target_column")):
        if column is None:
            raise UserError(
                f"task {name!r} needs {option}=<column>; columns: {', '.join(train.features)}"
            )
        require_text_column(train.features, column, option)
    assert source_column is not None and target_column is not None
    pattern = template or f"{{{source_column}}}\n"
    rows: list[list[tuple[list[int], list[int]]]] = []
    prompts: list[str] = []
    references: list[str] = []
    for split, which, limit in ((train, "training", max_train), (test, "test", max_test)):
        chosen = split.select(subset_of(len(split), limit))
        prompts = _filled(pattern, chosen, which)
        references = read_texts(chosen, target_column, which)
        asked = prompt_rows(form.tokenizer, prompts)
        wanted = form.tokenizer.encode_plain(references)
        rows.append([_row(a, w, form) for a, w in zip(asked, wanted, strict=True)])
    length = form.length([ids for part in rows for ids, _ in part])
    examples = [
        Examples(
            form.inputs([ids for ids, _ in part], length),
            padded([labels for _, labels in part], IGNORED, padding_side, length),
        )
        for part in rows
    ]
    num_tokens = _num_tokens(ids for part in examples for ids in (part.inputs[:, 0], part.labels))
    return Task(
        name=name,
        num_classes=0,
        input_shape=(2, length),
        class_names=(),
        train=examples[0],
        test=examples[1],
        loss=token_loss,
        metric=token_accuracy,
        count=num_wanted,
        notes=provenance,
        model_options={"outputs": "tokens", "num_tokens": num_tokens},
        generation=Generation(
            tokenizer=form.tokenizer,
            prompts=tuple(prompts),
            references=tuple(references),
            max_length=max_length,
        ),
    )


def _row(asked: list[int], wanted: list[int], form: TextFormat) -> tuple[list[int], list[int]]:
    """Return (ids, labels) of one row: labels[s] is the token to come after position s.

    The prompt loses its beginning where prompt and target are too long, never the target unless it
    alone is.
    """
    target = [*wanted, form.tokenizer.eos_id][: form.max_length]
    kept = without_beginning(asked, form.max_length + 1 - len(target), form.tokenizer)
    ids = [*kept, *target][: form.max_length + 1]
    labels = [IGNORED] * (len(kept) - 1) + ids[len(kept) :]
    return ids[:-1], labels


def _num_tokens(tables: Iterable[Tensor]) -> int:
    """Return how many tokens a model must know: the largest id and one."""
    return 1 + max((int(ids.max()) for ids in tables if ids.numel()), default=0)


def load_splits(
    name: str,
    data_path: str | Path | None,
    dataset: str | None,
    dataset_config: str | None,
    *,
    train_split: str | None,
    test_split: str | None,
) -> tuple[SplitPair, str]:
    """Return both splits as tables, and where they come from; see :func:`build_text_task`."""
    if (data_path is None) == (dataset is None):
        raise UserError(
            f"task {name!r} needs either data_path=<folder or file> or dataset=<name on the "
            f"Hugging Face hub>, got {'neither' if data_path is None else 'both'}"
        )
    if data_path is not None:
        source = find_local(data_path, train_split=train_split, test_split=test_split)
        return read_local(source), f"read from the local folder or file {source.root.name!r}"
    assert dataset is not None
    splits = read_hub(dataset, dataset_config, train_split=train_split, test_split=test_split)
    return splits, f"Hugging Face hub data set {dataset}"


def _fields(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name]
    except ValueError as error:
        raise UserError(f"the template {template!r} cannot be read: {error}") from error


def _first_field(template: str, features: Mapping[str, Any]) -> str:
    names = _fields(template)
    if not names:
        raise UserError(
            f"the prompt {template!r} names no column in braces; columns: {', '.join(features)}"
        )
    return names[0]


def _filled(template: str, split: Any, which: str) -> list[str]:
    """Return the template filled with every row's columns."""
    names = dict.fromkeys(_fields(template))
    for name in names:
        if name not in split.features:
            raise UserError(
                f"the template {template!r} names a column {name!r}; "
                f"{did_you_mean(name, split.features)}"
            )
    columns = {name: read_texts(split, name, which) for name in names}
    try:
        return [
            template.format(**{name: column[row] for name, column in columns.items()})
            for row in range(len(split))
        ]
    except (ValueError, LookupError) as error:  # of a format that is none of texts, or of {}
        raise UserError(
            f"the template {template!r} cannot be filled: {error}; write column names in braces, "
            "such as {sentence}, and braces of the text itself twice"
        ) from error


def _verbalizer(
    tokenizer: Tokenizer, words: Sequence[str], class_names: Sequence[str]
) -> Verbalizer:
    if len(words) != len(class_names):
        raise UserError(
            f"verbalizer has {len(words)} words, but the labels are {len(class_names)} classes "
            f"({', '.join(class_names)}); give one word for each, in this order"
        )
    ids = [encoded[0] if encoded else -1 for encoded in tokenizer.encode_plain(words)]
    for word, token_id in zip(words, ids, strict=True):
        if token_id == tokenizer.unknown_id:
            raise UserError(
                f"the verbalizer's word {word!r} is not in the tokenizer's vocabulary; choose "
                "another"
            )
        if token_id < 0 or ids.count(token_id) > 1:
            raise UserError(
                f"the verbalizer's word {word!r} begins with the same token as another, or with "
                "none; choose words that differ in their first token"
            )
    return Verbalizer(tuple(ids))
