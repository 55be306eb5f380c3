"""FedZO: federated averaging with zeroth-order local steps (arXiv 2201.09531, TSP 2022).

Symbols: t ``server_round``; H ``local_steps``; b2 ``num_perturbations``; theta ``weights``.

One round takes one exchange: the whole model down, the trained model up. Differs from FedAvg:
clients estimate their gradients from forward passes. Differs from DeComFL: directions are each
client's own and never known elsewhere, so the model itself has to travel, both ways.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from leansplit.federated import FedZOConfig, aggregate, sample_weights
from leansplit.parameters import load_parameters_
from leansplit.strategies.split import SplitStrategy
from leansplit.strategies.wanted import Wanted
from leansplit.wire import FedZOReply, FedZORequest, Form, forms_of
from leansplit.zeroth_order import loss_objective


class FedZO(SplitStrategy[FedZOConfig]):
    """Zeroth-order clients that hold the whole model; a server that averages models."""

    method = "fedzo"
    is_whole_model = True
    not_state = ("_cohort",)

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients keep the moments of their optimizers."""
        return self.config.client_optimizer.outlives_round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Step 1: sample the cohort and send it the model."""
        self._cohort = self.sample_cohort(server_round)
        request = FedZORequest(round=server_round, weights=self.client_weights())
        requests = dict.fromkeys(self._cohort, request)
        return self.federation.messages(requests, "fedzo_train", server_round)

    def reply_form(self, client_id: int) -> Form:
        """Return what a client's answer must look like."""
        return {
            "weights": forms_of(self.client_weights()),
            "num_samples": self.config.local_steps * self.federation.batch_size(client_id),
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step 4: theta <- the sample-weighted mean of the clients' models."""
        wanted = Wanted(FedZOReply, self.reply_form)
        arrived = self.federation.collect(replies, self._cohort, wanted.read)
        trained, failures = self.quorum.of(arrived.records, arrived.failures, len(self._cohort))
        num_samples = [reply.num_samples for reply in trained.values()]
        if trained:
            objective = loss_objective(self.model.full_model, self.loss)
            self.report_private_probes(
                server_round, trained, self.client_weights(), objective, self.config
            )
            states = [reply.weights for reply in trained.values()]
            shares, start = sample_weights(num_samples), self.client_weights()
            mean = aggregate(states, shares, start, self.config.robust)
            load_parameters_(self.model.full_model, mean)
        return self.finish_round(
            server_round,
            num_samples=sum(num_samples),
            train_loss=None,  # the estimate needs differences; no client reports a loss
            num_replied=len(trained),
            failures=failures,
        )
