"""The round that MU-SplitFed and ZO-SFL share: zeroth-order steps on both sides of the cut.

Clients upload smashed data at and around theta_c; the server steps its half by probes of its own
and answers with P loss differences, from which clients rebuild their estimate. How the server
steps, and what it compares, is the method's. Neither side ever differentiates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from leansplit.federated import ZOSplitConfig
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.strategies.alternating import AlternatingStrategy
from leansplit.strategies.server_replicas import ServerReplicas
from leansplit.strategies.split import probed_form
from leansplit.wire import DifferencesRequest, Form, ProbedSmashedDataReply
from leansplit.zeroth_order import ProbedSmashedData, ServerObjective

Z = TypeVar("Z", bound=ZOSplitConfig)


class ZOSplitStrategy(AlternatingStrategy[Z, ProbedSmashedDataReply]):
    """Server replicas, and the messages of a zeroth-order client."""

    forward_action = "zo_split_forward"
    step_action = "zo_split_step"
    upload_type = ProbedSmashedDataReply
    replicas: ServerReplicas

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model and forget all replicas."""
        arrays = super().begin(initial_arrays)
        self.replicas = ServerReplicas(
            trainable_parameters(self.model.server_model),
            self.config.server_optimizer,
            self.config.server_mode,
        )
        return arrays

    def arrays(self) -> ArrayRecord:
        """Return the global model: what the next round starts from."""
        load_parameters_(self.model.server_model, self.replicas.start)
        return super().arrays()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the server's replicas, then the clients."""
        self.replicas.begin_round()
        return super().configure_train(server_round, arrays, config, grid)

    def upload_form(self, client_id: int) -> Form:
        """Return what a client's probed smashed data must look like."""
        config = self.config
        return probed_form(
            super().upload_form(client_id), config.zeroth_order, with_anchor=config.sends_anchor
        )

    def answer(
        self, round: int, local_step: int, is_last: bool, tensor: Tensor
    ) -> DifferencesRequest:
        """Send P loss differences down."""
        return DifferencesRequest(
            round=round, local_step=local_step, is_last=is_last, scalars=tensor
        )

    def end_server_round(self, weights: Mapping[int, float]) -> None:
        """Average the replicas of the clients that finished."""
        self.replicas.end_round(weights)

    def objective(self, labels: Tensor, dropout_seed: int) -> ServerObjective:
        """Return F(theta_s, z) for one batch, in training mode whatever ran before."""
        server_model = self.model.server_model.train()
        return ServerObjective(server_model, self.loss, labels, dropout_seed)


def probed(upload: ProbedSmashedDataReply) -> ProbedSmashedData:
    """Return what a client probed."""
    return ProbedSmashedData(upload.smashed_data, upload.plus, upload.minus)
