"""What the server knows of every client's replica, and what each must be sent to catch up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from leansplit.federated.replica import Replica
from leansplit.federated.update_log import Update, UpdateLog
from leansplit.state import State

NEVER = -1
"""Version of a client that holds no replica yet."""

CatchUp = Literal["auto", "log", "snapshot"]
CATCH_UPS: Final[tuple[str, ...]] = get_args(CatchUp)


def place_type(pool_size: int) -> torch.dtype:
    """Return the type in which a place in a seed pool crosses: of one byte or two."""
    return torch.uint8 if pool_size <= 2**8 else torch.uint16


class Attendance:
    """Versions and known seeds of all clients, and the log that brings them up to date.

    It only decides *what* to send; encoding, pricing and transport are elsewhere. Bytes are those
    of the tensors that cross: names, shapes and round numbers around them decide nothing.

    Args:
        mirror: at version 0.
        catch_up: what clients that missed rounds are sent; see ``ReplicatedConfig``.
        pool: the seeds that all directions are drawn from; empty: fresh ones each round.
    """

    def __init__(
        self, mirror: Replica, catch_up: CatchUp = "auto", pool: Sequence[int] = ()
    ) -> None:
        self.log = UpdateLog()
        self._initial = {name: value.clone() for name, value in mirror.parameters.items()}
        self._catch_up = catch_up
        self._place_of = {seed: place for place, seed in enumerate(pool)}
        self._place_type = place_type(len(pool))
        self._snapshot_bytes = mirror.snapshot_bytes
        self._snapshot: tuple[int, dict[str, Tensor]] | None = None
        self._told: dict[tuple[int, int | None], dict[str, Any]] = {}  # since the last update
        self._checked_at = 0
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

    def append(self, update: Update, num_clients: int) -> None:
        """Log the newest update and drop those that nobody will be sent any more.

        Args:
            update: of the round that ends.
            num_clients: clients that may ever take part.
        """
        self.log.append(update)
        self._snapshot = None
        self._told.clear()
        if self._catch_up == "snapshot":
            self.log.keep_newest(1)
        elif self._catch_up == "auto":
            # The longest log that costs no more than a snapshot goes to a client that holds the
            # seeds of its first round.
            whole = _num_bytes(self._whole([update]))
            seeds = whole - torch.tensor(update.scalars).nbytes
            self.log.keep_newest((self._snapshot_bytes + seeds) // whole)
        if len(self.log) >= 2 * self._checked_at and len(self._versions) == num_clients:
            # Looking at all clients each time the log has doubled costs little a round.
            self.log.drop_until(min(self._versions.values()))
            self._checked_at = max(len(self.log), 1)

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
        self._told.clear()
        self._versions = {int(m): v for m, v in state["versions"].items()}
        self._known_seed_rounds = {int(m): t for m, t in state["known_seed_rounds"].items()}

    def catch_up(self, client_id: int, mirror: Replica) -> dict[str, Any]:
        """Return the catch-up fields of a request to ``client_id``.

        By the log: a first request carries the initial parameters; of the round whose seeds the
        client holds only the scalars; of rounds that it missed seeds and scalars.
        """
        return self._chosen(self.version(client_id), self._known_seed_rounds.get(client_id), mirror)

    def replay_from(self, version: int, mirror: Replica) -> dict[str, Any]:
        """Return catch-up fields that take any replica at ``version`` to the newest."""
        return self._chosen(version, None, mirror)

    def _chosen(self, version: int, known: int | None, mirror: Replica) -> dict[str, Any]:
        """Return what takes the fewest bytes of what is allowed; the log if both take as many.

        A log that does not reach back far enough leaves no choice. Of the many clients of a round,
        those that were last there in the same one are told the same.
        """
        told = self._told.get((version, known))
        if told is None:
            told = self._told[version, known] = self._choice(version, known, mirror)
        return told

    def _choice(self, version: int, known: int | None, mirror: Replica) -> dict[str, Any]:
        if max(version, 0) < self.log.base_version:
            return self.snapshot(mirror)
        by_log = self._by_log(version, known)
        if self._catch_up == "auto":
            is_dearer = _num_bytes(by_log) > self._snapshot_bytes
        else:
            is_dearer = self._catch_up == "snapshot" and "missed_rounds" in by_log
        return self.snapshot(mirror) if is_dearer else by_log

    def _by_log(self, version: int, known: int | None) -> dict[str, Any]:
        base = max(version, 0)
        fields: dict[str, Any] = {"target_version": self.log.latest_version, "base_version": base}
        if version == NEVER:
            fields |= {"weights": self._initial, "weights_version": 0}
        missed = list(self.log.since(base))
        if missed and missed[0].round == known:
            fields |= {"known_round": known, "scalars": torch.tensor(missed[0].scalars)}
            missed = missed[1:]
        return fields | self._whole(missed)

    def _whole(self, updates: Sequence[Update]) -> dict[str, Any]:
        """Return seeds and scalars [R, P]; with a pool, places in it instead of seeds."""
        if not updates:
            return {}
        fields = {
            "missed_rounds": [update.round for update in updates],
            "missed_scalars": torch.tensor([u.scalars for u in updates]),
        }
        if not self._place_of:
            seeds = torch.tensor([u.seeds for u in updates], dtype=torch.uint32)
            return fields | {"missed_seeds": seeds}
        places = [[self._place_of[seed] for seed in u.seeds] for u in updates]
        return fields | {"missed_places": torch.tensor(places, dtype=self._place_type)}

    def snapshot(self, mirror: Replica, *, is_resync: bool = False) -> dict[str, Any]:
        """Return catch-up fields that carry the server's own replica whole.

        Args:
            mirror: at the newest version.
            is_resync: whether it replaces a replica of that version too.
        """
        latest = self.log.latest_version
        if self._snapshot is None or self._snapshot[0] != latest:
            self._snapshot = (latest, mirror.state())
        return {
            "target_version": latest,
            "weights": self._snapshot[1],
            "weights_version": latest,
            "is_resync": is_resync,
        }


def _num_bytes(fields: Mapping[str, Any]) -> int:
    """Return the bytes of the tensors in a request's fields."""
    parts = [f.values() if isinstance(f, Mapping) else [f] for f in fields.values()]
    return sum(t.nbytes for part in parts for t in part if isinstance(t, Tensor))
