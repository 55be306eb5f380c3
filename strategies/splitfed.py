"""Split federated learning (Thapa et al., "SplitFed", AAAI 2022): the round of both variants.

Symbols: h ``local_step``; z ``smashed_data``; lambda ``smashed_gradient``; theta_c
``client_weights``. A round takes one exchange for each local step and one more: the weights ride
down with the first request and up with the last answer. How the server trains is the variants'.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from leansplit.federated import (
    SplitFedConfig,
    sample_weights,
    service_order,
    weighted_mean,
)
from leansplit.models.batch_statistics import refuse_batch_statistics, refuse_micro_batches
from leansplit.parameters import ParameterDict, load_parameters_
from leansplit.strategies.split import SplitStrategy, require_finite
from leansplit.wire import (
    BackwardRequest,
    Record,
    SmashedDataReply,
    TrainForwardRequest,
    WeightsReply,
)


class SplitFed(SplitStrategy[SplitFedConfig]):
    """The part of a round that SFLV1 and SFLV2 share."""

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model.

        Raises:
            UserError: if a layer keeps running batch statistics, which averaging weights would
                leave behind, or cannot run micro-batches that were asked for.
        """
        refuse_batch_statistics(self.model.full_model, self.method)
        if self.config.micro_batch:
            refuse_micro_batches(self.model.client_model)
        return super().begin(initial_arrays)

    @abstractmethod
    def serve(
        self, round: int, local_step: int, records: Mapping[int, SmashedDataReply]
    ) -> tuple[dict[int, float], dict[int, Tensor]]:
        """Train on the clients' smashed data, in the order of ``records``.

        Returns:
            (client id -> loss, client id -> smashed gradient).
        """

    def end_server_round(self, weights: Mapping[int, float]) -> None:
        """Finish the server's side of a round; ``weights`` are the clients' shares."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort, send theta_c, ask for the first smashed data."""
        cohort = self.sample_cohort(server_round)
        self._order = service_order(self.config.root_seed, server_round, cohort)
        is_sequential = self.config.client_order == "sequential"
        self._turns = [[m] for m in self._order] if is_sequential else [cohort]
        self._round_weights = {k: v.clone() for k, v in self.client_weights().items()}
        return self._first_messages(server_round, self._turns[0])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Alternate server steps and client steps, then average the client models."""
        trained: dict[int, ParameterDict] = {}
        num_samples: dict[int, int] = {}
        loss_sum: dict[int, float] = {}
        failures: dict[int, str] = {}
        for index, turn in enumerate(self._turns):
            if index:
                replies = self.federation.grid.send_and_receive(
                    self._first_messages(server_round, turn), timeout=self.federation.timeout_s
                )
            forward = self.federation.collect(replies, turn, SmashedDataReply)
            failures |= forward.failures
            arrived: Mapping[int, SmashedDataReply] = forward.records
            for h in range(self.config.local_steps):
                if not arrived:
                    break
                served = {m: arrived[m] for m in self._order if m in arrived}
                losses, gradients = self.serve(server_round, h, served)
                require_finite("loss", server_round, losses)
                for m, reply in served.items():
                    num_samples[m] = num_samples.get(m, 0) + len(reply.labels)
                    loss_sum[m] = loss_sum.get(m, 0.0) + losses[m] * len(reply.labels)
                is_last = h + 1 == self.config.local_steps
                requests: dict[int, Record] = {
                    m: BackwardRequest(
                        round=server_round,
                        local_step=h,
                        is_last=is_last,
                        smashed_gradient=gradients[m],
                    )
                    for m in gradients
                }
                backward = self.federation.exchange(
                    requests,
                    "splitfed_backward",
                    server_round,
                    (SmashedDataReply, WeightsReply),
                )
                failures |= backward.failures
                arrived = {}
                for m, answer in backward.records.items():
                    if isinstance(answer, WeightsReply):
                        trained[m] = answer.weights
                    else:
                        assert isinstance(answer, SmashedDataReply)
                        arrived[m] = answer
        cohort = sorted(trained)
        if cohort:
            shares = sample_weights([num_samples[m] for m in cohort])
            mean = weighted_mean([trained[m] for m in cohort], shares)
            load_parameters_(self.model.client_model, mean)
            self.end_server_round(dict(zip(cohort, shares, strict=True)))
        total = sum(num_samples.values())
        return self.finish_round(
            server_round,
            num_samples=total,
            train_loss=sum(loss_sum.values()) / total if total else None,
            num_replied=len(cohort),
            failures=dict(sorted(failures.items())),
        )

    def _first_messages(self, round: int, turn: list[int]) -> list[Message]:
        request = TrainForwardRequest(round=round, local_step=0, weights=self._round_weights)
        return self.federation.messages(dict.fromkeys(turn, request), "splitfed_forward", round)
