"""Split federated learning with auxiliary heads: the round of CSE-FSL, HERON-SFL and FSL-SAGE.

Symbols: h ``local_steps``; k ``upload_period``; z ``smashed_data``; theta_c, theta_s, theta_a
``local.client``, ``model.server_model``, ``local.auxiliary``; eta_s ``server_optimizer``.

Clients take all h local steps by themselves, so a round is one exchange: weights down, and trained
weights with the round's ceil(h / k) batches of smashed data up. The papers send every batch as
soon as it is there, one way; bytes are the same and nobody waits for the answer. How a client
trains is the variants'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from leansplit.federated import (
    AuxiliaryMethodConfig,
    aggregate,
    sample_weights,
    service_order,
)
from leansplit.first_order import NonFiniteLossError, ServerStep, server_step
from leansplit.models import LocalModel, build_auxiliary
from leansplit.models.batch_statistics import refuse_batch_statistics
from leansplit.noise import auxiliary_seed, server_dropout_seed
from leansplit.parameters import ParameterDict, load_parameters_, trainable_parameters
from leansplit.state import State
from leansplit.strategies.failures import Failure
from leansplit.strategies.finite_losses import finite_step, refused_losses, require_some
from leansplit.strategies.first_order_replicas import FirstOrderReplicas
from leansplit.strategies.split import SplitStrategy
from leansplit.strategies.wanted import Wanted
from leansplit.wire import Form, LocalTrainReply, LocalTrainRequest, forms_of

C = TypeVar("C", bound=AuxiliaryMethodConfig)


class AuxiliaryStrategy(SplitStrategy[C], Generic[C]):
    """The part of a round that the methods with auxiliary heads share."""

    not_state = ("_cohort",)
    train_action: str
    """Action of the round's one request."""

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model; the head follows when the clients have said what z looks like.

        Raises:
            UserError: if a layer keeps running batch statistics, which averaging weights would
                leave behind.
        """
        refuse_batch_statistics(self.model.full_model, self.method)
        arrays = super().begin(initial_arrays)
        self._local: LocalModel | None = None
        self._replicas: FirstOrderReplicas | None = None
        if self.config.server_mode == "averaged":
            self._replicas = FirstOrderReplicas(
                self.model.server_model, self.loss, self.config.server_optimizer, self.config.robust
            )
        return arrays

    def arrays(self) -> ArrayRecord:
        """Return the global model: a server average, never the replica that was served last."""
        if self._replicas is not None:
            self._replicas.restore_()
        return super().arrays()

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients keep the moments of their optimizers."""
        return self.config.client_optimizer.outlives_round

    def state(self) -> State:
        """Return also the head, and the average of the server's replicas if it has any."""
        return {
            **super().state(),
            "_local": trainable_parameters(self.local.auxiliary),
            "_replicas": self._replicas.state() if self._replicas is not None else {},
        }

    def load_state_(self, state: State) -> None:
        """Take also the head and the average."""
        super().load_state_(state)
        load_parameters_(self.local.auxiliary, state["_local"])
        if self._replicas is not None:
            self._replicas.load_state_(state["_replicas"])

    @property
    def local(self) -> LocalModel:
        """Client model and auxiliary head as the server holds them."""
        if self._local is None:
            sample = next(iter(self.federation.samples.values()))  # all are alike
            head = build_auxiliary(
                self.config.auxiliary,
                self.model,
                sample.smashed_data.shape,
                seed=auxiliary_seed(self.config.root_seed),
            )
            self._local = LocalModel(self.model.client_model, head)
        return self._local

    def weights_for(self, client_id: int, round: int) -> ParameterDict:
        """Return what a client is sent at the start of its round."""
        return trainable_parameters(self.local)

    def trained_weights(self) -> ParameterDict:
        """Return the weights that clients train and answer with, as they are now."""
        return trainable_parameters(self.local)

    def reply_form(self, client_id: int) -> Form:
        """Return what a client's answer must look like."""
        sample, size = self.federation.samples[client_id], self.federation.batch_size(client_id)
        return {
            **{
                name: dict.fromkeys(map(str, range(len(self.config.upload_steps))), form)
                for name, form in sample.stacked(size).items()
            },
            "weights": forms_of(self.trained_weights()),
            "num_samples": self.config.local_steps * size,
        }

    def absorb(self, round: int, replies: Mapping[int, LocalTrainReply]) -> None:
        """Learn from the replies what the average of weights does not say."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort and send it the weights."""
        self._cohort = self.sample_cohort(server_round)
        requests = {
            m: LocalTrainRequest(
                round=server_round,
                weights=self.weights_for(m, server_round),
                auxiliary_checksum=self.local.auxiliary_checksum,
            )
            for m in self._cohort
        }
        return self.federation.messages(requests, self.train_action, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train the server model on the uploads, then average what clients trained."""
        wanted = Wanted(LocalTrainReply, self.reply_form)
        arrived = self.federation.collect(replies, self._cohort, wanted.read)
        records, failures = self.quorum.of(arrived.records, arrived.failures, len(self._cohort))
        losses: dict[int, list[float]] = {}
        if records:
            losses, refused = self.serve(server_round, records)
            failures |= self.federation.failures(refused, refused)
            heard = {m: records[m] for m in losses}
            records, failures = self.quorum.of(heard, failures, len(self._cohort))
        num_samples = [reply.num_samples for reply in records.values()]
        train_loss = None
        if records:
            shares = dict(zip(records, sample_weights(num_samples), strict=True))
            train_loss = sum(shares[m] * sum(losses[m]) / len(losses[m]) for m in records)
            if self._replicas is not None:
                self._replicas.average_(shares)
            self.absorb(server_round, records)
            trained = [reply.weights for reply in records.values()]
            start, given = trainable_parameters(self.local), list(shares.values())
            load_parameters_(self.local, aggregate(trained, given, start, self.config.robust))
        return self.finish_round(
            server_round,
            num_samples=sum(num_samples),
            train_loss=train_loss,
            num_replied=len(records),
            failures=failures,
        )

    def serve(
        self, round: int, replies: Mapping[int, LocalTrainReply]
    ) -> tuple[dict[int, list[float]], dict[int, Failure]]:
        """Train the server model on a round's uploads.

        Returns:
            Client id -> losses of its uploads, of those whose losses are all finite; and why the
            others do not count.

        Raises:
            RunFailedError: if that is nobody.
        """
        losses = (self._in_sum if self.config.server_mode == "summed" else self._in_turn)(
            round, replies
        )
        last = {m: values[-1] for m, values in losses.items()}
        refused = refused_losses(last)
        require_some(round, last)
        return {m: values for m, values in losses.items() if m not in refused}, refused

    def _in_turn(
        self, round: int, replies: Mapping[int, LocalTrainReply]
    ) -> dict[int, list[float]]:
        """One step for each upload, clients in a fresh random order as in SFLV2.

        Returns:
            Client id -> losses of its uploads, up to the first that is not finite.
        """
        config = self.config
        order = [m for m in service_order(config.root_seed, round, self._cohort) if m in replies]
        uploads = list(enumerate(config.upload_steps))
        if config.client_order == "sequential":
            turns = [(m, *upload) for m in order for upload in uploads]
        else:
            turns = [(m, *upload) for upload in uploads for m in order]
        optimizer = self.server_optimizer(config.server_optimizer, round)
        losses: dict[int, list[float]] = {m: [] for m in replies}
        for m, index, h in turns:
            if not all(map(math.isfinite, losses[m])):
                continue
            z, y = replies[m].uploads[index]
            seed = server_dropout_seed(config.root_seed, round, m, h)
            try:
                if self._replicas is not None:
                    if index == 0:
                        self._replicas.open(m)
                    step = self._replicas.step(m, z, y, dropout_seed=seed)
                else:
                    step = server_step(
                        self.model.server_model, self.loss, optimizer, [z], [y], [1.0],
                        dropout_seed=seed,
                    )  # fmt: skip
            except NonFiniteLossError as error:
                losses[m] += error.losses
            else:
                losses[m] += step.losses
        return losses

    def _in_sum(self, round: int, replies: Mapping[int, LocalTrainReply]) -> dict[int, list[float]]:
        """One step for each upload index, on the sum of the clients' mean gradients.

        Returns:
            Client id -> losses of its uploads, up to the first that is not finite.
        """
        optimizer = self.server_optimizer(self.config.server_optimizer, round)
        losses: dict[int, list[float]] = {m: [] for m in replies}
        heard: Iterable[int] = replies
        for index, h in enumerate(self.config.upload_steps):
            seed = server_dropout_seed(self.config.root_seed, round, local_step=h)

            def step(batches: dict[int, tuple[Tensor, Tensor]], seed: int = seed) -> ServerStep:
                return server_step(
                    self.model.server_model,
                    self.loss,
                    optimizer,
                    [z for z, _ in batches.values()],
                    [y for _, y in batches.values()],
                    [1.0] * len(batches),
                    dropout_seed=seed,
                )

            uploads = {m: replies[m].uploads[index] for m in heard}
            heard, taken, broken = finite_step(round, uploads, step)
            for m, loss in (*zip(heard, taken.losses, strict=True), *broken.items()):
                losses[m].append(loss)
        return losses
