"""Where a zeroth-order server's half is trained within a round: in one copy or in several."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from leansplit.federated import (
    OptimizerConfig,
    ReplicaMode,
    RobustConfig,
    TrainedVector,
    aggregate,
    weighted_mean,
)
from leansplit.parameters import ParameterDict
from leansplit.state import State

_SHARED = -1  # stands for all clients where they share one copy


class ServerReplicas:
    """The server model at the start of a round, and what the round's clients have made of it.

    ``averaged``: each client has a replica of its own, and the replicas of those that finish are
    averaged, moments included. ``sequential``: all clients share one. Either way the work of a
    round that nobody finishes is dropped.

    Attributes:
        start: the parameters that the round began with.
    """

    def __init__(
        self,
        parameters: ParameterDict,
        optimizer: OptimizerConfig,
        mode: ReplicaMode,
        robust: RobustConfig,
    ) -> None:
        self.start = {name: value.clone() for name, value in parameters.items()}
        self._optimizer = optimizer
        self._mode = mode
        self._robust = robust
        self._moments: dict[str, Tensor] = {}
        self._replicas: dict[int, TrainedVector] = {}

    def begin_round(self) -> None:
        """Forget the replicas of the last round."""
        self._replicas = {}

    def of(self, client_id: int) -> TrainedVector:
        """Return the copy that ``client_id`` trains, as it stands now."""
        key = client_id if self._mode == "averaged" else _SHARED
        if key not in self._replicas:
            self._replicas[key] = TrainedVector(self.start, self._optimizer, self._moments)
        return self._replicas[key]

    def end_round(self, weights: Mapping[int, float], global_lr: float = 1.0) -> None:
        """Move the start of the next round towards the mean of the finishers' replicas.

        Args:
            weights: client id -> its share, of the clients that finished the round.
            global_lr: how far to go; 1 = all the way to the mean.
        """
        shares = dict(weights) if self._mode == "averaged" else {_SHARED: 1.0}
        replicas, given = [self._replicas[m] for m in shares], list(shares.values())
        states = [replica.parameters for replica in replicas]
        self.start = aggregate(states, given, self.start, self._robust, global_lr)
        if self._optimizer.outlives_round:
            self._moments = weighted_mean([replica.moments for replica in replicas], given)

    def state(self) -> State:
        """Return what the next round starts from."""
        return {"start": self.start, "moments": self._moments}

    def load_state_(self, state: State) -> None:
        """Go on from :meth:`state`."""
        self.start, self._moments = dict(state["start"]), dict(state["moments"])
