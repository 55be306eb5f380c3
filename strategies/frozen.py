"""The frozen-client control: a constant client model, a trained server.

Clients upload smashed data and labels; nothing comes back and the client model never changes, so
whatever accuracy it reaches is owed to the server alone. Every comparison needs this row: without
it a match with split federated learning proves nothing about training the client.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord

from leansplit.federated import (
    FrozenConfig,
    sample_weights,
)
from leansplit.first_order import server_step
from leansplit.noise import server_dropout_seed
from leansplit.strategies.replicated import ReplicatedStrategy
from leansplit.strategies.split import mean_loss, require_finite, split_replies
from leansplit.wire import SmashedDataReply


class FrozenClient(ReplicatedStrategy[FrozenConfig]):
    """Forward passes at the client, training at the server only; one exchange a round."""

    method = "frozen"
    forward_action = "frozen_forward"

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one server step on the cohort's mean loss."""
        forward = self.opened(replies, server_round, SmashedDataReply)
        train_loss = None
        num_samples = 0
        if forward.records:
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
