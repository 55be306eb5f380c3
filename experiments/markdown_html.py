"""The Markdown of our own summaries as HTML: headings, tables, lists, paragraphs, code.

Not Markdown in general: `summary.md` and `sweep.md` are written by this package, so one page and
one file say the same in the same words. All text is escaped; labels are the users'.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby

_CELL_BREAK = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"`([^`]+)`")
_RULE = re.compile(r"\|(?: *:?-+:? *\|)+")


@dataclass
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: list[list[str]] = field(default_factory=list)
    """Runs of lines of one sort: table rows, list items, or a paragraph."""

    def html(self) -> str:
        """Return the blocks as HTML, without the heading."""
        return "\n".join(_block(block, self.heading) for block in self.blocks)


def sections(markdown: str) -> list[Section]:
    """Return the sections of a document of ours, in order; the first is headed by its title."""
    found: list[Section] = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = block.splitlines()
        while lines and lines[0].startswith("#"):
            found.append(Section(lines.pop(0).lstrip("#").strip()))
        if not found:
            found.append(Section(""))
        if lines:
            found[-1].blocks.append(lines)
    return found


def inline(text: str) -> str:
    """Return text with its code spans, escaped."""
    parts = _CODE.split(text)
    return "".join(
        f"<code>{escape(part)}</code>" if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    is_numeric: bool = True,
    is_headed: bool = False,
) -> str:
    """Return a table that scrolls sideways on its own; the first cell of a row heads it.

    Args:
        caption: what the table shows, as text.
        header: names of the columns, as text.
        rows: cells, as HTML.
        is_numeric: whether cells are numbers, which end at the right and do not wrap.
        is_headed: whether the heading above says the same as the caption, which is then not shown.
    """
    unseen = ' class="unseen"' if is_headed else ""
    lines = [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">',
        f'<table class="{"numbers" if is_numeric else "words"}">',
        f"<caption{unseen}>{escape(caption)}</caption>",
        "<thead><tr>",
        *(f'<th scope="col">{escape(name)}</th>' for name in header),
        "</tr></thead>",
        "<tbody>",
    ]
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", "</div>"])


def bullets(items: Sequence[str]) -> str:
    """Return a list."""
    return "\n".join(["<ul>", *(f"<li>{inline(item)}</li>" for item in items), "</ul>"])


def _block(lines: list[str], heading: str) -> str:
    if len(lines) > 1 and _RULE.fullmatch(lines[1].strip()):
        header, _, *rows = [_cells(line) for line in lines]
        return table(heading, header, [[inline(c) for c in row] for row in rows], is_headed=True)
    if all(line.lstrip().startswith("- ") for line in lines):
        return _list(lines)
    return f"<p>{inline(' '.join(lines))}</p>"


def _list(lines: Sequence[str]) -> str:
    """Return a list whose indented items are lists below the item before them."""
    parts = ["<ul>"]
    for is_deeper, run in groupby(lines, key=lambda line: line.startswith(" ")):
        items = bullets([line.lstrip().removeprefix("- ") for line in run]).splitlines()
        if is_deeper and len(parts) > 1:
            parts[-1] = parts[-1].removesuffix("</li>")
            parts += [*items, "</li>"]
        else:
            parts += items[1:-1]
    return "\n".join([*parts, "</ul>"])


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    parts = _CELL_BREAK.split(inner)
    return [part.strip().replace("\\|", "|") for part in parts[:-1]]
