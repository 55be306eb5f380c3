"""The rounds of a plain loop: who takes part, and how whoever runs it can watch and end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from leansplit.federated import ClientData, MethodConfig

AfterRound = Callable[[int], bool]
"""t -> whether to go on; called when ``model`` is what round t has made of it."""


def go_on(round: int) -> bool:
    """Watch nothing; the loop runs all its rounds."""
    return True


def cohorts(
    config: MethodConfig, clients: Sequence[ClientData], num_rounds: int, after_round: AfterRound
) -> Iterator[tuple[int, list[int]]]:
    """Yield (t, cohort) for each round, as :func:`rounds`, of cohorts drawn alike."""
    sample_cohort = partial(config.sample_cohort, population=range(len(clients)))
    return rounds(num_rounds, sample_cohort, after_round)


def rounds(
    num_rounds: int, sample_cohort: Callable[[int], list[int]], after_round: AfterRound
) -> Iterator[tuple[int, list[int]]]:
    """Yield (t, cohort) for each round; a round for which nobody is there is over at once.

    Args:
        num_rounds: T.
        sample_cohort: t -> the clients that take part.
        after_round: called with t when the loop's work on round t is done; False ends the loop.
    """
    for t in range(1, num_rounds + 1):
        cohort = sample_cohort(t)
        if cohort:
            yield t, cohort
        if not after_round(t):
            return
