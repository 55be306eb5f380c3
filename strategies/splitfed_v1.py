"""SFLV1 (Thapa et al., "SplitFed", AAAI 2022): one server replica for each client, averaged.

Differs from SFLV2 in that the server trains every client's data on a replica of its own and
averages the replicas at the end of the round; only sampled clients' replicas exist. With
``server_optimizer.lifetime == "run"`` the replicas' moments are averaged and kept as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord
from torch import Tensor

from leansplit.federated import (
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    weighted_mean,
)
from leansplit.first_order import server_step
from leansplit.noise import server_dropout_seed
from leansplit.parameters import ParameterDict, load_parameters_, trainable_parameters
from leansplit.strategies.splitfed import SplitFed
from leansplit.wire import SmashedDataReply


class SplitFedV1(SplitFed):
    """Clients and server replicas train in parallel; both are averaged."""

    method = "sflv1"

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model and forget all replicas."""
        arrays = super().begin(initial_arrays)
        self._replicas: dict[int, tuple[ParameterDict, dict[str, Tensor]]] = {}
        self._moments: dict[str, Tensor] = {}
        self._start = self._server_parameters()
        return arrays

    def arrays(self) -> ArrayRecord:
        """Return the global model: the average, never the replica that was served last."""
        load_parameters_(self.model.server_model, self._start)
        return super().arrays()

    def _server_parameters(self) -> ParameterDict:
        parameters = trainable_parameters(self.model.server_model)
        return {name: value.clone() for name, value in parameters.items()}

    def serve(
        self, round: int, local_step: int, records: Mapping[int, SmashedDataReply]
    ) -> tuple[dict[int, float], dict[int, Tensor]]:
        """Take one step on each client's own replica."""
        losses: dict[int, float] = {}
        gradients: dict[int, Tensor] = {}
        config = self.config.server_optimizer
        for m, reply in records.items():
            if local_step == 0:
                kept = self._moments if config.outlives_round else {}
                self._replicas[m] = (self._start, kept)
            parameters, moments = self._replicas[m]
            load_parameters_(self.model.server_model, parameters)
            optimizer = build_optimizer(config, self.model.server_model.parameters())
            if config.outlives_batch:
                load_optimizer_state_(optimizer, moments)
            step = server_step(
                self.model.server_model,
                self.loss,
                optimizer,
                [reply.smashed_data],
                [reply.labels],
                [1.0],
                dropout_seed=server_dropout_seed(self.config.root_seed, round, m, local_step),
            )
            self._replicas[m] = (self._server_parameters(), optimizer_state(optimizer))
            losses[m], gradients[m] = step.losses[0], step.smashed_gradients[0]
        return losses, gradients

    def end_server_round(self, weights: Mapping[int, float]) -> None:
        """Average the replicas of the clients that finished."""
        replicas = [self._replicas[m] for m in weights]
        shares = list(weights.values())
        self._start = weighted_mean([parameters for parameters, _ in replicas], shares)
        self._moments = weighted_mean([moments for _, moments in replicas], shares)
        load_parameters_(self.model.server_model, self._start)
