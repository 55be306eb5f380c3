"""How whoever runs a plain loop can watch it, and end it."""

from __future__ import annotations

from collections.abc import Callable

AfterRound = Callable[[int], bool]
"""t -> whether to go on; called when ``model`` is what round t has made of it."""


def go_on(round: int) -> bool:
    """Watch nothing; the loop runs all its rounds."""
    return True
