"""Hostile clients that a run injects into itself, to compare what the server can do about them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from leansplit.errors import UserError, require_choice
from leansplit.noise import derive_seed, numpy_generator

Attack = Literal["none", "sign_flip", "scale", "random", "nan", "label_flip"]
ATTACKS: Final[tuple[str, ...]] = get_args(Attack)


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Who is hostile, and what hostile clients do to what they send up.

    The first three change scalars, and weights as differences from what the client was sent.
    """

    kind: Attack = "none"
    """``sign_flip``: the negative. ``scale``: ``factor`` times as much. ``random``: Gaussian noise
    with ``factor`` times the norm. ``nan``: no number in any tensor. ``label_flip``: honest work on
    labels in reverse order (the last class is called the first)."""
    share: float = 0.2
    """Share of all clients that are hostile, for the whole run."""
    factor: float = 10.0
    """Of ``scale`` and ``random``."""

    def __post_init__(self) -> None:
        """Refuse what is no attack."""
        require_choice("kind", self.kind, ATTACKS)
        if not 0 <= self.share <= 1:
            raise UserError(f"share must be in [0, 1], got {self.share}")
        if not math.isfinite(self.factor):
            raise UserError(f"factor must be finite, got {self.factor}")

    def require_somebody(self, num_clients: int) -> None:
        """Refuse a share that comes to nobody, unless it is 0.

        Raises:
            UserError: saying so.
        """
        if self.kind != "none" and self.share and not _num_hostile(self.share, num_clients):
            raise UserError(
                f"attack.share = {self.share} of {num_clients} clients is nobody; enlarge it, or "
                "set attack.share = 0 for a run in which all are honest"
            )

    def is_hostile(self, root_seed: int, client_id: int, num_clients: int) -> bool:
        """Say whether a client is one of the hostile ones, drawn once for the run."""
        if self.kind == "none":
            return False
        return client_id in _hostile_clients(root_seed, num_clients, self.share)


@functools.lru_cache(maxsize=4)  # every message asks
def _hostile_clients(root_seed: int, num_clients: int, share: float) -> frozenset[int]:
    generator = numpy_generator(derive_seed(root_seed, "hostile-clients"))
    order = generator.permutation(num_clients)
    return frozenset(order[: _num_hostile(share, num_clients)].tolist())


def _num_hostile(share: float, num_clients: int) -> int:
    return round(share * num_clients)
