"""Clients whose smashed data the server model makes no finite loss of are dropped from the round.

Finite values of any size have the right form, and some overflow on their way to the loss. What a
client's batch comes to is known before anything is learned from it, so it costs that client its
round and nobody else anything. If nobody's loss is finite it is the server model that is broken:
the run stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from leansplit.first_order import NonFiniteLossError, ServerStep
from leansplit.strategies.failures import Failure
from leansplit.strategies.split import require_finite

U = TypeVar("U")


def finite_step(
    round: int, uploads: Mapping[int, U], step: Callable[[dict[int, U]], ServerStep]
) -> tuple[dict[int, U], ServerStep, dict[int, float]]:
    """Take one server step with the clients whose losses are finite.

    Args:
        round: the current round.
        uploads: client id -> what it uploaded.
        step: uploads of some of them -> the step.

    Returns:
        The uploads that counted, the step on them, and the losses of the others.

    Raises:
        RunFailedError: if nobody's loss is finite.
    """
    heard, refused = dict(uploads), dict[int, float]()
    while True:
        try:
            return heard, step(heard), refused
        except NonFiniteLossError as error:
            losses = dict(zip(heard, error.losses, strict=True))
            require_some(round, losses)
            refused |= {m: loss for m, loss in losses.items() if not math.isfinite(loss)}
            heard = {m: upload for m, upload in heard.items() if m not in refused}


def require_some(round: int, losses: Mapping[int, float]) -> None:
    """Stop the run if no client is left whose loss is finite.

    Raises:
        RunFailedError: naming the round and a client.
    """
    if not any(map(math.isfinite, losses.values())):
        require_finite("loss", round, losses)


def refused_losses(losses: Mapping[int, float]) -> dict[int, Failure]:
    """Return why the clients with these losses do not count, for those that are not finite."""
    return {
        m: Failure(f"a non-finite loss ({loss}) of the server on its smashed data", "non_finite")
        for m, loss in losses.items()
        if not math.isfinite(loss)
    }
