"""Numbers and rows of tables for readers, in plain text and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from leansplit.experiments.fairness import quantity

NONE: Final = "–"
"""Where there is nothing honest to say."""
_DIGITS = 4


def plus_minus(mean: float | None, std: float | None, decimals: int | None = 1) -> str:
    """Return a mean with its spread, both to the same place, as all tables show them.

    Args:
        mean: None where there is none.
        std: None for a single seed.
        decimals: digits after the point; None for amounts, which show four digits of the mean.
    """
    if mean is None:
        return NONE
    if decimals is None:
        if not std or not mean:
            return quantity(mean) if std is None else f"{quantity(mean)} ± {quantity(std)}"
        decimals = max(0, _DIGITS - 1 - math.floor(math.log10(abs(mean))))
    return f"{mean:,.{decimals}f}" if std is None else f"{mean:,.{decimals}f} ± {std:,.{decimals}f}"


def quantity_or_none(value: float | None) -> str:
    """Return an amount, or the sign for none."""
    return NONE if value is None else quantity(value)


def table_lines(cells: Sequence[Sequence[str]], num_text_columns: int = 1) -> list[str]:
    """Return a markdown table of a header and rows; columns after the first ones hold numbers."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    rule = ["---"] * num_text_columns + ["---:"] * (len(header) - num_text_columns)
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
