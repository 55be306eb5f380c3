"""What the server knows of every client's replica, and what each must be sent to catch up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leansplit.federated.update_log import Update, UpdateLog
from leansplit.state import State

NEVER = -1
"""Version of a client that holds no replica yet."""


class Attendance:
    """Versions and known seeds of all clients, and the log that brings them up to date.

    It only decides *what* to send; encoding, pricing and transport are elsewhere.
    """

    def __init__(self, initial: Mapping[str, Tensor]) -> None:
        self.log = UpdateLog()
        self._initial = {name: value.detach().clone() for name, value in initial.items()}
        self._versions: dict[int, int] = {}
        self._known_seed_rounds: dict[int, int] = {}

    def version(self, client_id: int) -> int:
        """Return the version of the client's replica as far as the server knows."""
        return self._versions.get(client_id, NEVER)

    @property
    def participants(self) -> list[int]:
        """Ids of the clients that hold a replica, ascending."""
        return sorted(self._versions)

    def confirm(self, client_id: int) -> None:
        """Note that the client reached the newest version."""
        self._versions[client_id] = self.log.latest_version

    def confirm_seeds(self, client_id: int, round: int) -> None:
        """Note that the client holds the seeds of ``round``."""
        self._known_seed_rounds[client_id] = round

    def doubt_seeds(self, client_id: int) -> None:
        """Note that the client may hold other seeds by now: what it misses is sent whole."""
        self._known_seed_rounds.pop(client_id, None)

    def forget(self, client_id: int) -> None:
        """Note that the client has lost its replica; it stays one of the participants."""
        if client_id in self._versions:
            self._versions[client_id] = NEVER
        self.doubt_seeds(client_id)

    def state(self) -> State:
        """Return the log, and what is known of every client."""
        return {
            "log": self.log.state(),
            "versions": dict(self._versions),
            "known_seed_rounds": dict(self._known_seed_rounds),
        }

    def load_state_(self, state: State) -> None:
        """Go on from :meth:`state`; the initial parameters stay."""
        self.log.load_state_(state["log"])
        self._versions = {int(m): v for m, v in state["versions"].items()}
        self._known_seed_rounds = {int(m): t for m, t in state["known_seed_rounds"].items()}

    def catch_up(self, client_id: int) -> dict[str, Any]:
        """Return the catch-up fields of a request to ``client_id``.

        A first request carries the initial parameters; of the round whose seeds the client
        holds only the scalars; of rounds that it missed seeds and scalars.
        """
        version = self.version(client_id)
        missed = list(self.log.since(max(version, 0)))
        fields = self._from(version)
        known = self._known_seed_rounds.get(client_id)
        if missed and missed[0].round == known:
            fields |= {"known_round": known, "scalars": torch.tensor(missed[0].scalars)}
            missed = missed[1:]
        return fields | _whole(missed)

    def replay_from(self, version: int) -> dict[str, Any]:
        """Return catch-up fields that take any replica at ``version`` to the newest."""
        return self._from(version) | _whole(list(self.log.since(max(version, 0))))

    def _from(self, version: int) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "target_version": self.log.latest_version,
            "base_version": max(version, 0),
        }
        if version == NEVER:
            fields |= {"weights": self._initial, "weights_version": 0}
        return fields

    def snapshot(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return catch-up fields that replace a replica by the server's own ``state``."""
        latest = self.log.latest_version
        return {
            "target_version": latest,
            "weights": dict(state),
            "weights_version": latest,
            "is_resync": True,
        }


def _whole(updates: list[Update]) -> dict[str, Any]:
    if not updates:
        return {}
    return {
        "missed_rounds": [update.round for update in updates],
        "missed_seeds": torch.tensor([u.seeds for u in updates], dtype=torch.uint32),
        "missed_scalars": torch.tensor([u.scalars for u in updates]),
    }
