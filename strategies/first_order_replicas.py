"""One server replica for each client of a round, averaged at its end (SFLV1's server)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from leansplit.federated import (
    OptimizerConfig,
    RobustConfig,
    aggregate,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    weighted_mean,
)
from leansplit.first_order import Loss, ServerStep, server_step
from leansplit.parameters import ParameterDict, load_parameters_, trainable_parameters
from leansplit.state import State


class FirstOrderReplicas:
    """Replicas of the server model; only those of sampled clients exist.

    Args:
        server_model: the module in which every step is computed; between rounds it holds the
            average.
        loss: (outputs, labels) -> mean loss.
        config: optimizer of every replica. With the lifetime ``run`` the replicas' moments are
            averaged and kept as well.
        robust: how the replicas become one; moments are averaged in any case.
    """

    def __init__(
        self, server_model: nn.Module, loss: Loss, config: OptimizerConfig, robust: RobustConfig
    ) -> None:
        self._server_model = server_model
        self._loss = loss
        self._config = config
        self._robust = robust
        self._replicas: dict[int, tuple[ParameterDict, dict[str, Tensor]]] = {}
        self._moments: dict[str, Tensor] = {}
        self._average = self._parameters()

    def _parameters(self) -> ParameterDict:
        parameters = trainable_parameters(self._server_model)
        return {name: value.clone() for name, value in parameters.items()}

    def open(self, client_id: int) -> None:
        """Start a client's round: its replica is the average."""
        kept = self._moments if self._config.outlives_round else {}
        self._replicas[client_id] = (self._average, kept)

    def step(
        self, client_id: int, smashed_data: Tensor, labels: Tensor, *, dropout_seed: int
    ) -> ServerStep:
        """Take one step on a client's replica."""
        parameters, moments = self._replicas[client_id]
        load_parameters_(self._server_model, parameters)
        optimizer = build_optimizer(self._config, self._server_model.parameters())
        load_optimizer_state_(optimizer, moments)
        step = server_step(
            self._server_model,
            self._loss,
            optimizer,
            [smashed_data],
            [labels],
            [1.0],
            dropout_seed=dropout_seed,
        )
        self._replicas[client_id] = (self._parameters(), optimizer_state(optimizer))
        return step

    def average_(self, weights: Mapping[int, float]) -> None:
        """Average the replicas of the clients that finished; ``weights`` are their shares."""
        replicas = [self._replicas[m] for m in weights]
        shares = list(weights.values())
        states = [parameters for parameters, _ in replicas]
        self._average = aggregate(states, shares, self._average, self._robust)
        self._moments = weighted_mean([moments for _, moments in replicas], shares)
        self.restore_()

    def restore_(self) -> None:
        """Put the average into the server model, never the replica that was served last."""
        load_parameters_(self._server_model, self._average)

    def state(self) -> State:
        """Return the average of parameters and moments, as they are between rounds."""
        return {"average": self._average, "moments": self._moments}

    def load_state_(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self._average, self._moments = dict(state["average"]), dict(state["moments"])
        self.restore_()
