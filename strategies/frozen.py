"""The frozen-client control: a constant client model, a trained server.

Clients upload smashed data and labels; nothing comes back and the client model never changes, so
whatever accuracy it reaches is owed to the server alone. Every comparison needs this row: without
it a match with split federated learning proves nothing about training the client.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from leansplit.federated import (
    FrozenConfig,
    OptimizerConfig,
    Replica,
    sample_cohort,
    sample_weights,
)
from leansplit.first_order import server_step
from leansplit.noise import server_dropout_seed
from leansplit.strategies.replicated import ReplicatedStrategy
from leansplit.strategies.split import mean_loss, require_finite, split_replies
from leansplit.wire import BehindReply, ForwardRequest, SmashedDataReply
from leansplit.zeroth_order import ZerothOrderConfig


class FrozenClient(ReplicatedStrategy[FrozenConfig]):
    """Forward passes at the client, training at the server only; one exchange a round."""

    method = "frozen"

    def new_mirror(self) -> Replica:
        """Return the replica that no update ever moves."""
        return Replica(self.client_weights(), OptimizerConfig(), ZerothOrderConfig())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort and ask for its smashed data."""
        self._cohort = sample_cohort(
            self.config.root_seed,
            server_round,
            self.federation.population,
            self.config.cohort_size,
        )
        requests = {
            m: ForwardRequest(round=server_round, **self.attendance.catch_up(m))
            for m in self._cohort
        }
        return self.federation.messages(requests, "frozen_forward", server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one server step on the cohort's mean loss."""
        forward = self.settle(
            self.federation.collect(replies, self._cohort, (SmashedDataReply, BehindReply)),
            lambda m, catch_up: ForwardRequest(round=server_round, **catch_up),
            "frozen_forward",
            server_round,
            SmashedDataReply,
        )
        train_loss = None
        num_samples = 0
        if forward.records:
            for m in forward.records:
                self.attendance.confirm(m)
            smashed, labels, sizes = split_replies(forward.records)
            weights = sample_weights(sizes)
            step = server_step(
                self.model.server_model,
                self.loss,
                self.server_optimizer(self.config.server_optimizer, server_round),
                smashed,
                labels,
                weights,
                dropout_seed=server_dropout_seed(self.config.root_seed, server_round),
            )
            losses = dict(zip(forward.records, step.losses, strict=True))
            require_finite("loss", server_round, losses)
            train_loss, num_samples = mean_loss(losses, weights), sum(sizes)
        return self.finish_round(
            server_round,
            num_samples=num_samples,
            train_loss=train_loss,
            num_replied=len(forward.records),
            failures=forward.failures,
        )
