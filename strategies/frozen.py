"""The frozen-client control: a constant client model, a trained server.

Clients upload smashed data and labels; nothing comes back and the client model never changes, so
whatever accuracy it reaches is owed to the server alone. Every comparison needs this row: without
it a match with split federated learning proves nothing about training the client.

With ``features_once`` a client uploads all its smashed data at its first participation and is not
asked again. The server then draws the batches, with the same seeds: the same model, other traffic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from leansplit.federated import ClientData, FrozenConfig, sample_weights, take_batch
from leansplit.state import State
from leansplit.strategies.replicated import ReplicatedStrategy
from leansplit.strategies.split import mean_loss
from leansplit.strategies.wanted import Wanted
from leansplit.wire import Form, SmashedDataReply


@dataclass(frozen=True)
class Features:
    """Smashed data of all of a client's samples, in the order in which the client holds them."""

    inputs: Tensor
    """z, shape [n, ...]: the inputs of the server model."""
    labels: Tensor
    """y, shape [n, ...]."""


class FrozenClient(ReplicatedStrategy[FrozenConfig]):
    """Forward passes at the client, training at the server only; one exchange a round."""

    method = "frozen"
    forward_action = "frozen_forward"

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model and forget all features."""
        self._features: dict[int, ClientData] = {}
        return super().begin(initial_arrays)

    def state(self) -> State:
        """Return also the features that are known for good."""
        kept = {m: {"z": f.inputs, "y": f.labels} for m, f in self._features.items()}
        return {**super().state(), "_features": kept}

    def load_state_(self, state: State) -> None:
        """Take also the features."""
        super().load_state_(state)
        kept = state["_features"].items()
        self._features = {int(m): Features(held["z"], held["y"]) for m, held in kept}

    def asked_clients(self, round: int) -> list[int]:
        """Return the cohort without the clients whose features are known for good."""
        return [m for m in self.sample_cohort(round) if m not in self._features]

    @property
    def samples_forwarded(self) -> int:
        """Samples that clients ran forward: with ``features_once``, each of their own once."""
        if self.config.features_once:
            return sum(len(features.labels) for features in self._features.values())
        return super().samples_forwarded

    def upload_form(self, client_id: int) -> Form:
        """Return what a client's upload must look like: a batch, or all its samples."""
        if not self.config.features_once:
            return super().upload_form(client_id)
        return self.federation.samples[client_id].stacked(self.federation.num_samples[client_id])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one server step on the cohort's mean loss."""
        forward = self.opened(replies, server_round, Wanted(SmashedDataReply, self.upload_form))
        batches = self._batches(server_round, forward.records)
        sizes: list[int] = []
        failures, train_loss = dict(forward.failures), None
        if batches:
            heard, step, refused = self.joint_step(
                server_round, batches, self.config.server_optimizer
            )
            failures |= refused
            sizes = [len(batches[m][1]) for m in heard]
            losses = dict(zip(heard, step.losses, strict=True))
            train_loss = mean_loss(losses, sample_weights(sizes))
        return self.finish_round(
            server_round,
            num_samples=sum(sizes),
            train_loss=train_loss,
            num_replied=len(sizes),
            failures=failures,
        )

    def _batches(
        self, round: int, records: Mapping[int, SmashedDataReply]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return client id -> (z, y) of the round, in ascending order of ids."""
        if not self.config.features_once:
            return {m: (reply.smashed_data, reply.labels) for m, reply in records.items()}
        for m, reply in records.items():
            self._features[m] = Features(reply.smashed_data, reply.labels)
        seed, size = self.config.root_seed, self.config.batch_size
        return {
            m: take_batch(self._features[m], seed, round, m, batch_size=size)
            for m in self.sample_cohort(round)
            if m in self._features
        }
