"""SFLV1 (Thapa et al., "SplitFed", AAAI 2022): one server replica for each client, averaged.

Differs from SFLV2 in that the server trains every client's data on a replica of its own and
averages the replicas at the end of the round; only sampled clients' replicas exist. With
``server_optimizer.lifetime == "run"`` the replicas' moments are averaged and kept as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord
from torch import Tensor

from leansplit.first_order import NonFiniteLossError
from leansplit.noise import server_dropout_seed
from leansplit.state import State
from leansplit.strategies.alternating import Served
from leansplit.strategies.first_order_replicas import FirstOrderReplicas
from leansplit.strategies.splitfed import SplitFed
from leansplit.wire import SmashedDataReply


class SplitFedV1(SplitFed):
    """Clients and server replicas train in parallel; both are averaged."""

    method = "sflv1"

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model and forget all replicas."""
        arrays = super().begin(initial_arrays)
        self._replicas = FirstOrderReplicas(
            self.model.server_model, self.loss, self.config.server_optimizer, self.config.robust
        )
        return arrays

    def arrays(self) -> ArrayRecord:
        """Return the global model: the average, never the replica that was served last."""
        self._replicas.restore_()
        return super().arrays()

    def serve(self, round: int, local_step: int, uploads: Mapping[int, SmashedDataReply]) -> Served:
        """Take one step on each client's own replica."""
        losses: dict[int, float] = {}
        gradients: dict[int, Tensor] = {}
        for m, reply in uploads.items():
            if local_step == 0:
                self._replicas.open(m)
            try:
                step = self._replicas.step(
                    m,
                    reply.smashed_data,
                    reply.labels,
                    dropout_seed=server_dropout_seed(self.config.root_seed, round, m, local_step),
                )
            except NonFiniteLossError as error:
                losses[m] = error.losses[0]
                continue
            losses[m], gradients[m] = step.losses[0], step.smashed_gradients[0]
        return Served(losses, gradients)

    def end_server_round(self, weights: Mapping[int, float]) -> None:
        """Average the replicas of the clients that finished."""
        self._replicas.average_(weights)

    def state(self) -> State:
        """Return also the average of the replicas."""
        return {**super().state(), "_replicas": self._replicas.state()}

    def load_state_(self, state: State) -> None:
        """Take also the average."""
        super().load_state_(state)
        self._replicas.load_state_(state["_replicas"])
