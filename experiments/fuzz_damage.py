"""Ways to damage an encoding at random: bits, lengths, numbers, shapes, names, other messages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

_NUMBERS = (b"0", b"-1", b"4294967296", b"18446744073709551616", b"1e308", b"null", b"[]", b"{}")

Random = np.random.Generator
Others = Sequence[bytes]
"""Valid encodings, of which parts are taken."""


def damaged(blob: bytes, others: Others, random: Random) -> bytes:
    """Return ``blob`` with one thing wrong, or two.

    Args:
        blob: a valid encoding.
        others: more of them.
        random: decides what happens.
    """
    for _ in range(1 + int(random.integers(4) == 0)):
        blob = _DAMAGES[int(random.integers(len(_DAMAGES)))](blob, others, random)
    return blob


def _at(blob: bytes, random: Random) -> int:
    return int(random.integers(len(blob) + 1))


def _flip(blob: bytes, others: Others, random: Random) -> bytes:
    changed = bytearray(blob)
    for _ in range(int(random.integers(1, 9))) if blob else ():
        changed[int(random.integers(len(blob)))] = int(random.integers(256))
    return bytes(changed)


def _cut(blob: bytes, others: Others, random: Random) -> bytes:
    return blob[: _at(blob, random)]


def _insert(blob: bytes, others: Others, random: Random) -> bytes:
    place = _at(blob, random)
    return blob[:place] + random.bytes(int(random.integers(1, 33))) + blob[place:]


def _splice(blob: bytes, others: Others, random: Random) -> bytes:
    other = others[int(random.integers(len(others)))]
    return blob[: _at(blob, random)] + other[_at(other, random) :]


def _number(blob: bytes, others: Others, random: Random) -> bytes:
    """Put another value in the place of a number of the JSON, and make the length fit again."""
    length = int.from_bytes(blob[:8], "little")
    is_record = 8 + length <= len(blob)
    head, text, rest = (blob[:8], blob[8 : 8 + length], blob[8 + length :])
    if not is_record:
        head, text, rest = b"", blob, b""
    found = list(re.finditer(rb"(?<=[\[,:])-?\d+", text))
    if not found:
        return blob
    at = found[int(random.integers(len(found)))]
    value = _NUMBERS[int(random.integers(len(_NUMBERS)))]
    text = text[: at.start()] + value + text[at.end() :]
    return (len(text).to_bytes(8, "little") if head else b"") + text + rest


def _shape(blob: bytes, others: Others, random: Random) -> bytes:
    """Claim another shape of as many elements, or an enormous one without any."""
    length = int.from_bytes(blob[:8], "little")
    try:
        header = json.loads(blob[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]
        entry = header[names[int(random.integers(len(names)))]]
        if random.integers(2):
            entry["shape"] = [1, *reversed(entry["shape"])]
        else:
            entry["shape"] = [int(2 ** random.integers(1, 40)) for _ in range(2)] + [0]
            entry["data_offsets"][1] = entry["data_offsets"][0]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError):
        return blob
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + blob[8 + length :]


def _other(blob: bytes, others: Others, random: Random) -> bytes:
    """Answer with another record."""
    return others[int(random.integers(len(others)))]


def _values(blob: bytes, others: Others, random: Random) -> bytes:
    """Damage what follows the header: tensors of any bits."""
    start = 8 + int.from_bytes(blob[:8], "little")
    return blob[:start] + _flip(blob[start:], others, random)


def _name(blob: bytes, others: Others, random: Random) -> bytes:
    """Put another record's header text, or a word of its own, in the place of a word."""
    words = list(re.finditer(rb'(?<=")\w+(?=\\?")', blob))
    others = re.findall(rb'(?<=")\w+(?=\\?")', others[int(random.integers(len(others)))])
    if not words or not others:
        return blob
    at = words[int(random.integers(len(words)))]
    changed: bytes = (
        blob[: at.start()] + others[int(random.integers(len(others)))] + blob[at.end() :]
    )
    length = int.from_bytes(blob[:8], "little") + len(changed) - len(blob)
    is_record = 0 <= length < len(changed) and blob[8:9] == b"{"
    return length.to_bytes(8, "little") + changed[8:] if is_record else changed


_DAMAGES = (
    *(_flip, _cut, _insert, _splice, _other, _number, _number),
    *(_shape, _shape, _values, _values, _name, _name),
)
