"""What kinds of bytes cross between clients and server."""

from __future__ import annotations

from typing import Final, Literal, get_args

Kind = Literal[
    "smashed_data",  # cut-layer outputs, up
    "labels",  # up with the smashed data
    "masks",  # attention masks, up with the smashed data
    "smashed_gradient",  # loss gradient at the cut, down
    "scalars",  # directional differences, up, and their means, down
    "seeds",  # perturbation seeds, down
    "catch_up",  # seeds and scalars of rounds that a client missed, down
    "weights",  # model parameters (and moments in a resync), both ways
    "checkpoint",  # what only clients hold, up at a checkpoint, down when a run goes on
    "envelope",  # everything else in the encoded record: names, shapes, round numbers
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Direction = Literal["uplink", "downlink"]
"""Seen from the client: ``uplink`` = client to server."""
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)
