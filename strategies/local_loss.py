"""CSE-FSL and HERON-SFL: heads that are trained at the client and averaged; or heads alone.

With ``frozen_client`` only theta_a is trained: the control that says what training theta_c adds
beyond the head. theta_c then crosses once for each client, and theta_a alone goes up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from flwr.app import ArrayRecord
from torch import nn

from leansplit.federated import LocalLossConfig
from leansplit.parameters import ParameterDict, trainable_parameters
from leansplit.state import State
from leansplit.strategies.auxiliary import AuxiliaryStrategy
from leansplit.wire import LocalTrainReply

C = TypeVar("C", bound=LocalLossConfig)


class LocalLossStrategy(AuxiliaryStrategy[C], Generic[C]):
    """Clients train against a loss of their own; weights that never change cross once."""

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model; nobody holds it yet."""
        self._holders: set[int] = set()
        return super().begin(initial_arrays)

    def state(self) -> State:
        """Return also who holds a frozen client model."""
        return {**super().state(), "_holders": sorted(self._holders)}

    def load_state_(self, state: State) -> None:
        """Take also who holds it."""
        super().load_state_(state)
        self._holders = set(state["_holders"])

    def forget_clients(self, client_ids: Iterable[int]) -> None:
        """Clients without a memory are sent everything."""
        self._holders.difference_update(client_ids)

    def weights_for(self, client_id: int, round: int) -> ParameterDict:
        """Return theta_c and theta_a, or theta_a alone if the client holds a frozen theta_c."""
        is_new = client_id not in self._holders
        weights = super().weights_for(client_id, round) if is_new else self.trained_weights()
        self._holders.discard(client_id)  # until it answers: it may have lost its memory
        return weights

    def trained_weights(self) -> ParameterDict:
        """Return what clients train: theta_c and theta_a, or theta_a alone."""
        weights = trainable_parameters(self.local)
        if not self.config.frozen_client:
            return weights
        return {name: value for name, value in weights.items() if name.startswith("auxiliary.")}

    def absorb(self, round: int, replies: Mapping[int, LocalTrainReply]) -> None:
        """Who answered holds what it was sent."""
        self._holders |= replies.keys()

    def clients_alone(self) -> nn.Module:
        """Return the averaged client model with its head."""
        return nn.Sequential(self.local.client, self.local.auxiliary)
