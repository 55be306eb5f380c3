"""Rounds in which server and clients take turns: smashed data up, the server's answer down.

A round takes one exchange for each local step and one more: the client weights ride down with the
first request and up with the last answer. What the server does with smashed data, and what it
answers, is the method's.

Symbols: h ``local_step``; theta_c ``client_weights``; w_m ``weights`` (a client's share of the
samples trained on in the round).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from leansplit.federated import LocalStepsConfig, aggregate, sample_weights, service_order
from leansplit.models.batch_statistics import refuse_batch_statistics
from leansplit.parameters import ParameterDict, load_parameters_
from leansplit.strategies.failures import Failure
from leansplit.strategies.federation import Replies
from leansplit.strategies.finite_losses import refused_losses, require_some
from leansplit.strategies.split import SplitStrategy
from leansplit.strategies.wanted import Wanted
from leansplit.wire import (
    Form,
    Record,
    SmashedDataReply,
    TrainForwardRequest,
    WeightsReply,
    forms_of,
)

C = TypeVar("C", bound=LocalStepsConfig)
U = TypeVar("U", bound=SmashedDataReply)
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Served:
    """What the server makes of one step's smashed data.

    Attributes:
        losses: client id -> mean loss of its batch; one that is not finite costs the client its
            round, and the server has not stepped on it.
        answers: client id -> the tensor that goes back to it, of those with a finite loss.
    """

    losses: dict[int, float]
    answers: dict[int, Tensor]


class AlternatingStrategy(SplitStrategy[C], Generic[C, U]):
    """The round of split methods whose clients wait for the server at every local step.

    Attributes:
        forward_action: answers a :class:`TrainForwardRequest` with an upload.
        step_action: answers :meth:`answer` with the next upload, or the weights at the end.
        upload_type: the record that clients upload.
    """

    not_state = ("_order", "_turns", "round_weights")
    forward_action: str
    step_action: str
    upload_type: type[U]

    @abstractmethod
    def serve(self, round: int, local_step: int, uploads: Mapping[int, U]) -> Served:
        """Train on the clients' uploads, in the order of the mapping."""

    @abstractmethod
    def answer(self, round: int, local_step: int, is_last: bool, tensor: Tensor) -> Record:
        """Return the request that carries one of :class:`Served`'s answers."""

    def weights_form(self, client_id: int) -> Form:
        """Return what a client's answer at the end of its round must look like."""
        return {"weights": forms_of(self.round_weights)}

    def end_server_round(self, weights: Mapping[int, float]) -> None:
        """Finish the server's side of a round; ``weights`` are the finishers' shares.

        Not called for a round that nobody finished.
        """

    def mean_client(
        self, states: Sequence[ParameterDict], weights: Sequence[float]
    ) -> ParameterDict:
        """Return the client model that the next round starts from."""
        return aggregate(states, weights, self.round_weights, self.config.robust)

    def turns(self, cohort: list[int], order: list[int]) -> list[list[int]]:
        """Return who works at the same time, turn after turn; here, all at once."""
        return [cohort]

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model.

        Raises:
            UserError: if a layer keeps running batch statistics, which averaging weights would
                leave behind.
        """
        refuse_batch_statistics(self.model.full_model, self.method)
        return super().begin(initial_arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort, send theta_c, ask for the first smashed data."""
        cohort = self.sample_cohort(server_round)
        self._order = service_order(self.config.root_seed, server_round, cohort)
        self._turns = self.turns(cohort, self._order)
        self.round_weights = {k: v.clone() for k, v in self.client_weights().items()}
        return self._first_messages(server_round, self._turns[0])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Alternate server steps and client steps, then average the client models."""
        wanted_upload = Wanted(self.upload_type, self.upload_form)
        wanted_weights = Wanted(WeightsReply, self.weights_form)
        trained: dict[int, ParameterDict] = {}
        num_samples: dict[int, int] = {}
        loss_sum: dict[int, float] = {}
        failures: dict[int, Failure] = {}
        losses: dict[int, float] = {}
        for index, turn in enumerate(self._turns):
            if index:
                replies = self.federation.grid.send_and_receive(
                    self._first_messages(server_round, turn), timeout=self.federation.timeout_s
                )
            forward = self.federation.collect(replies, turn, wanted_upload.read)
            failures |= forward.failures
            arrived = forward.records
            for h in range(self.config.local_steps):
                if not arrived:
                    break
                uploads = {m: arrived[m] for m in self._order if m in arrived}
                served = self.serve(server_round, h, uploads)
                losses |= served.losses
                refused = refused_losses(served.losses)
                failures |= self.federation.failures(refused, refused)
                for m in served.answers:
                    size = len(uploads[m].labels)
                    num_samples[m] = num_samples.get(m, 0) + size
                    loss_sum[m] = loss_sum.get(m, 0.0) + served.losses[m] * size
                is_last = h + 1 == self.config.local_steps
                answers: dict[int, Record] = {
                    m: self.answer(server_round, h, is_last, tensor)
                    for m, tensor in served.answers.items()
                }
                if is_last:
                    ended = self._exchange(answers, server_round, wanted_weights)
                    failures |= ended.failures
                    trained |= {m: reply.weights for m, reply in ended.records.items()}
                else:
                    stepped = self._exchange(answers, server_round, wanted_upload)
                    failures |= stepped.failures
                    arrived = stepped.records
        require_some(server_round, losses)
        trained, failures = self.quorum.of(trained, failures, len(self._order))
        cohort = sorted(trained)
        if cohort:
            shares = sample_weights([num_samples[m] for m in cohort])
            mean = self.mean_client([trained[m] for m in cohort], shares)
            load_parameters_(self.model.client_model, mean)
            self.end_server_round(dict(zip(cohort, shares, strict=True)))
        total = sum(num_samples.values())
        return self.finish_round(
            server_round,
            num_samples=total,
            train_loss=sum(loss_sum.values()) / total if total else None,
            num_replied=len(cohort),
            failures=failures,
        )

    def _exchange(self, answers: Mapping[int, Record], round: int, wanted: Wanted[R]) -> Replies[R]:
        return self.federation.exchange(answers, self.step_action, round, wanted.read)

    def _first_messages(self, round: int, turn: list[int]) -> list[Message]:
        request = TrainForwardRequest(round=round, local_step=0, weights=self.round_weights)
        return self.federation.messages(dict.fromkeys(turn, request), self.forward_action, round)
