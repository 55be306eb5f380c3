"""FedAvg (McMahan et al., AISTATS 2017): Flower's own strategy, made repeatable.

The averaging is Flower's. Two things are replaced, because Flower draws nodes from the global
random generator and sums replies in the order of their arrival: the cohort comes from the root
seed, and replies are sorted by client id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from leansplit.errors import UserError
from leansplit.federated import FedAvgConfig
from leansplit.models import SplitModel
from leansplit.models.batch_statistics import refuse_batch_statistics
from leansplit.parameters import (
    load_parameters_,
)
from leansplit.strategies.running import RunningStrategy
from leansplit.strategies.split import require_finite

NUM_SAMPLES = "num-examples"  # Flower's own name for the weighting metric
TRAIN_LOSS = "train-loss"


class FedAvg(RunningStrategy, flower.FedAvg):
    """Flower's FedAvg over the whole model, trained by first-order clients.

    Args:
        model: the halves whose composition is the model; trained in place.
        config: the method's settings.
        options: see :class:`leansplit.strategies.running.RunningStrategy`.
    """

    method = "fedavg"
    is_whole_model = True

    def __init__(self, model: SplitModel, config: FedAvgConfig, **options: Any) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=1,
            min_available_nodes=1,
            weighted_by_key=NUM_SAMPLES,
            **options,
        )
        if self.deployment.clients_per_node > 1:
            raise UserError(
                "fedavg averages one reply for each SuperNode, as Flower does; set "
                "clients_per_node to 1"
            )
        self.model = model
        self.config = config

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model; of it, only trainable parameters travel.

        Raises:
            UserError: if a layer keeps running batch statistics.
        """
        refuse_batch_statistics(self.model.full_model, self.method)
        return super().begin(initial_arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort from the root seed and send it the model."""
        self._cohort = self.sample_cohort(server_round)
        self.federation.revive(self._cohort)
        config["server-round"] = server_round
        content = RecordDict(
            {
                self.arrayrecord_key: ArrayRecord(dict(self.client_weights())),
                self.configrecord_key: config,
            }
        )
        node_ids = [self.federation.node_of(m) for m in self._cohort]
        messages = list(self._construct_messages(content, node_ids, MessageType.TRAIN))
        for message in messages:
            message.metadata.group_id = str(server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sort the replies by client id, then let Flower average them."""
        client_of = {self.federation.node_of(m): m for m in self._cohort}
        answered = {
            client_of[reply.metadata.src_node_id]: reply
            for reply in replies
            if not reply.has_error()
        }
        node_errors = {
            self.federation.grid.sender_of(reply): str(reply.error.reason)
            for reply in replies
            if reply.has_error()
        }
        missing = [m for m in self._cohort if m not in answered]
        failures = self.federation.failures(missing, {}, node_errors)
        ordered = [answered[m] for m in sorted(answered)]
        losses = {m: _metric(answered[m], TRAIN_LOSS) for m in sorted(answered)}
        require_finite("loss", server_round, losses)
        mean, metrics = super().aggregate_train(server_round, ordered)
        if mean is not None:
            load_parameters_(self.model.full_model, mean.to_torch_state_dict())
        return self.finish_round(
            server_round,
            num_samples=int(sum(_metric(reply, NUM_SAMPLES) for reply in ordered)),
            train_loss=None if metrics is None else float(str(metrics[TRAIN_LOSS])),
            num_replied=len(ordered),
            failures=failures,
        )


def _metric(reply: Message, key: str) -> float:
    record = next(iter(reply.content.metric_records.values()))
    return float(str(record[key]))
