"""Text to token ids and back, and rows of ids to one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol, get_args

import torch
from torch import Tensor

from leansplit.errors import UserError, require_choice
from leansplit.models.language.sources import resolved

PaddingSide = Literal["right", "left"]
PADDING_SIDES: Final[tuple[str, ...]] = get_args(PaddingSide)
BYTES: Final = "bytes"
"""Name of the tokenizer that needs no file."""


class Tokenizer(Protocol):
    """What tasks need of a tokenizer."""

    pad_id: int
    eos_id: int
    unknown_id: int | None
    begin: tuple[int, ...]
    """What stands before every text, such as a begin token: models are pretrained with it."""

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[list[int]]:
        """Return the ids of texts, or of pairs of texts, with the tokenizer's own special ones.

        Longer rows lose the end of their text, of a pair the longer one's.
        """
        ...

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        ...


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token; 0 pads, 1 ends. Needs no file, so tests use it."""

    pad_id = 0
    eos_id = 1
    unknown_id: int | None = None
    begin: tuple[int, ...] = ()

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[list[int]]:
        """Return bytes + 2; a pair is joined by the end token, which also ends each row."""
        first = self.encode_plain(texts)
        if pairs is None:
            return [[*ids[: max_length - 1], self.eos_id] for ids in first]
        rows = []
        for a, b in zip(first, self.encode_plain(pairs), strict=True):
            kept = _kept_of_pair(len(a), len(b), max(0, max_length - 2))
            rows.append([*a[: kept[0]], self.eos_id, *b[: kept[1]], self.eos_id])
        return rows

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return bytes + 2."""
        return [[byte + 2 for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text, broken characters replaced."""
        return bytes(i - 2 for i in ids if 2 <= i < 258).decode(errors="replace")


class PretrainedTokenizer:
    """A tokenizer of the transformers library.

    Args:
        source: a name on the hub, or a folder.
        pad_token: a token to pad with, where the tokenizer has none; ``eos`` = its end token.

    Raises:
        UserError: if there is no such tokenizer, or nothing to pad with.
    """

    def __init__(self, source: str, pad_token: str = "") -> None:
        from transformers import AutoTokenizer

        try:
            loaded: Any = AutoTokenizer.from_pretrained(resolved(source))
        except UserError:
            raise
        except Exception as error:  # missing files and networks have no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"no tokenizer at {source!r}: {reason}; give task_options.tokenizer a folder with "
                "tokenizer.json, a name on the hub (which needs a connection), or 'bytes'"
            ) from error
        if len(loaded) <= len(loaded.all_special_ids):  # what the library makes of no file at all
            raise UserError(
                f"no tokenizer at {source!r}: it knows no token; give task_options.tokenizer a "
                "folder with tokenizer.json, a name on the hub, or 'bytes'"
            )
        self._loaded = loaded
        if pad_token:
            token = loaded.eos_token if pad_token == "eos" else pad_token
            if token is None or not _knows(loaded, token):
                raise UserError(
                    f"the tokenizer {source!r} has no token {pad_token!r} to pad with; name one of "
                    "its vocabulary with task_options.pad_token"
                )
            loaded.pad_token = token
        if loaded.pad_token_id is None:
            raise UserError(
                f"the tokenizer {source!r} has no padding token; set task_options.pad_token, for "
                "example to eos"
            )
        self.pad_id = int(loaded.pad_token_id)
        end = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
        self.eos_id = self.pad_id if end is None else int(end)
        self.unknown_id: int | None = loaded.unk_token_id
        self.begin: tuple[int, ...] = _begin(*self._ids(["a"], None), *self.encode_plain(["a"]))

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[list[int]]:
        """Return ids with the special tokens that the tokenizer was made to add.

        Raises:
            UserError: if these alone fill ``max_length``.
        """
        num_special = self._loaded.num_special_tokens_to_add(pair=pairs is not None)
        if max_length <= num_special:  # the library would then cut nothing
            raise UserError(
                f"max_length is {max_length}, but the tokenizer adds {num_special} special tokens "
                "to a row; raise it"
            )
        self._loaded.truncation_side = "right"
        return self._ids(texts, pairs, truncation=True, max_length=max_length)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids without special tokens."""
        return self._ids(texts, None, add_special_tokens=False)

    def _ids(self, texts: Sequence[str], pairs: Sequence[str] | None, **how: Any) -> list[Any]:
        if not texts:
            return []
        with_pairs = {} if pairs is None else {"text_pair": list(pairs)}
        encoded = self._loaded(
            list(texts), **with_pairs, return_attention_mask=False, verbose=False, **how
        )
        return list(encoded["input_ids"])

    def save(self, folder: str | Path) -> None:
        """Write it as it is used here, its padding token included, for ``from_pretrained``."""
        self._loaded.save_pretrained(folder)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text, special tokens left out."""
        text: str = self._loaded.decode(list(ids), skip_special_tokens=True)
        return text


def _knows(loaded: Any, token: str) -> bool:
    """Say whether a token is of the vocabulary; the one for unknown ones is, as GPT-2's end."""
    token_id = loaded.convert_tokens_to_ids(token)
    return token_id is not None and (token_id != loaded.unk_token_id or token == loaded.unk_token)


def _begin(row: Sequence[int], plain: Sequence[int]) -> tuple[int, ...]:
    """Return what special tokens put before a text, from its ids with and without them."""
    for at in range(len(row) - len(plain) + 1):
        if list(row[at : at + len(plain)]) == list(plain):
            return tuple(row[:at])
    return ()


def _kept_of_pair(first: int, second: int, at_most: int) -> tuple[int, int]:
    """Return how much of two texts is kept: the longer one loses its end first."""
    if first + second <= at_most:
        return first, second
    kept = max(at_most - second, at_most // 2) if first > second else min(first, at_most // 2)
    return kept, at_most - kept


def load_tokenizer(source: str, pad_token: str = "") -> Tokenizer:
    """Return a tokenizer by name on the hub, folder, or ``bytes``.

    Raises:
        UserError: if there is none, or it has nothing to pad with.
    """
    if not source:
        raise UserError(
            "this task needs a tokenizer: name a model by hub name or folder (--model), or give "
            "task_options.tokenizer, which may also be 'bytes'"
        )
    return ByteTokenizer() if source == BYTES else PretrainedTokenizer(source, pad_token)


def prompt_rows(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts to go on with: what begins every text, and no end."""
    return [[*tokenizer.begin, *ids] for ids in tokenizer.encode_plain(prompts)]


def without_beginning(row: Sequence[int], at_most: int, tokenizer: Tokenizer) -> list[int]:
    """Return at most so many ids of a prompt: its end, after what begins every text.

    A prompt of no ids, which no model can go on with, becomes the tokenizer's end token.
    """
    num_begin = len(tokenizer.begin)
    start = max(num_begin, len(row) - max(0, at_most - num_begin))
    return [*row[:num_begin], *row[start:]][:at_most] or [tokenizer.eos_id]


def padded(rows: Sequence[Sequence[int]], value: int, side: PaddingSide, length: int) -> Tensor:
    """Return rows as one int64 tensor [n, length], filled up with ``value``."""
    require_choice("padding_side", side, PADDING_SIDES)
    table = torch.full((len(rows), length), value, dtype=torch.int64)
    for at, row in enumerate(rows):
        if row:
            where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
            table[at, where] = torch.tensor(row, dtype=torch.int64)
    return table


def tokens(rows: Sequence[Sequence[int]], pad_id: int, side: PaddingSide, length: int) -> Tensor:
    """Return ids and attention mask [n, 2, length] of rows of ids."""
    ids = padded(rows, pad_id, side, length)
    mask = padded([[1] * len(row) for row in rows], 0, side, length)
    return torch.stack([ids, mask], dim=1)
