"""Text data sets whose place, columns and prompts are known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal, get_args

from leansplit.errors import require_choice
from leansplit.tasks.images import DATA_VARIABLE
from leansplit.tasks.source import SplitPair
from leansplit.tasks.task import Task
from leansplit.tasks.text import build_generation_task, build_text_task, load_splits
from leansplit.tasks.tokens import PaddingSide

Style = Literal["classes", "prompt"]
STYLES: Final[tuple[str, ...]] = get_args(Style)


def build_sst2_task(
    *,
    data_path: str | Path | None = None,
    style: Style = "classes",
    tokenizer: str = "",
    pad_token: str = "",
    max_length: int = 128,
    padding_side: PaddingSide = "right",
    max_train: int | None = None,
    max_test: int | None = None,
) -> Task:
    """Return SST-2 (Socher et al. 2013, as in GLUE): film reviews, negative or positive.

    Evaluated on the validation split; the test split's labels are not public. From ``data_path``,
    else from ``sst2/`` in the folder LEANSPLIT_DATA, else from the hub.

    Args:
        data_path: a folder with train and validation files.
        style: ``classes``: a classification head; ``prompt``: "<sentence> It was", and whether
            " terrible" or " great" comes next (as in MeZO, arXiv 2305.17333).
        tokenizer: see :func:`build_text_task`, as for all that follow.
        pad_token: what to pad with where the tokenizer has no padding token.
        max_length: in tokens.
        padding_side: ``right`` or ``left``.
        max_train: use only this many training texts.
        max_test: the same for test texts.
    """
    require_choice("style", style, STYLES)
    is_prompt = style == "prompt"
    return build_text_task(
        **_place("sst2", data_path, "stanfordnlp/sst2"),
        text_column="sentence",
        label_column="label",
        test_split="validation",
        prompt="{sentence} It was" if is_prompt else "",
        verbalizer=(" terrible", " great") if is_prompt else (),
        tokenizer=tokenizer,
        pad_token=pad_token,
        max_length=max_length,
        padding_side=padding_side,
        max_train=max_train,
        max_test=max_test,
    )


def build_rte_task(
    *,
    data_path: str | Path | None = None,
    style: Style = "classes",
    tokenizer: str = "",
    pad_token: str = "",
    max_length: int = 128,
    padding_side: PaddingSide = "right",
    max_train: int | None = None,
    max_test: int | None = None,
) -> Task:
    """Return RTE (as in GLUE): does the first sentence entail the second? Validation split.

    Arguments as for :func:`build_sst2_task`; the prompt asks whether the second sentence is true,
    and the answer is " Yes" or " No".
    """
    require_choice("style", style, STYLES)
    is_prompt = style == "prompt"
    question = '{sentence1}\nDoes this mean that "{sentence2}" is true? Yes or No?\n'
    return build_text_task(
        **_place("rte", data_path, "nyu-mll/glue", "rte"),
        text_column="sentence1",
        pair_column=None if is_prompt else "sentence2",
        label_column="label",
        test_split="validation",
        prompt=question if is_prompt else "",
        verbalizer=("Yes", "No") if is_prompt else (),
        tokenizer=tokenizer,
        pad_token=pad_token,
        max_length=max_length,
        padding_side=padding_side,
        max_train=max_train,
        max_test=max_test,
    )


def build_e2e_task(
    *,
    data_path: str | Path | None = None,
    tokenizer: str = "",
    pad_token: str = "",
    max_length: int = 128,
    padding_side: PaddingSide = "right",
    max_train: int | None = None,
    max_test: int | None = None,
) -> Task:
    """Return E2E (Novikova et al. 2017): restaurant descriptions from attribute lists.

    Arguments as for :func:`build_sst2_task`. Test rows with one attribute list are references of
    each other, for BLEU and ROUGE.
    """
    return build_generation_task(
        **_place_of_e2e(data_path),
        source_column="meaning_representation",
        target_column="human_reference",
        test_split="test",
        tokenizer=tokenizer,
        pad_token=pad_token,
        max_length=max_length,
        padding_side=padding_side,
        max_train=max_train,
        max_test=max_test,
    )


def e2e_splits(data_path: str | Path | None = None) -> SplitPair:
    """Return E2E's training and test rows as tables; from where :func:`build_e2e_task` has them."""
    place: dict[str, Any] = {"dataset": None, "dataset_config": None, "data_path": None}
    place |= _place_of_e2e(data_path)
    return load_splits(**place, train_split=None, test_split="test")[0]


def _place_of_e2e(data_path: str | Path | None) -> dict[str, Any]:
    return _place("e2e", data_path, "tuetschek/e2e_nlg")


def _place(
    name: str, data_path: str | Path | None, hub: str, hub_config: str | None = None
) -> dict[str, Any]:
    """Return the options that say where a data set lies: as given, LEANSPLIT_DATA, or the hub."""
    root = os.environ.get(DATA_VARIABLE)
    path = Path(data_path) if data_path is not None else None
    if path is None and root and (Path(root).expanduser() / name).exists():
        path = Path(root).expanduser() / name
    if path is not None:
        return {"name": name, "data_path": path}
    return {"name": name, "dataset": hub, "dataset_config": hub_config}
