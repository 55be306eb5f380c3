"""What the clients of CSE-FSL and HERON-SFL share: the round of a client with a local loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leansplit.clients.auxiliary import kept_weights, local_model
from leansplit.clients.session import Session
from leansplit.federated import LocalLossConfig
from leansplit.models import LocalModel
from leansplit.parameters import load_parameters_
from leansplit.wire import LocalTrainRequest


@dataclass(frozen=True)
class LocalLossRound:
    """What a client trains in a round, and on what.

    Attributes:
        session: this client's.
        round: 1-based.
        model: what is trained, with the weights of the request: client model and head; under
            ``frozen_client`` the head alone.
        frozen_client: the client model that is not trained; None where it is.
    """

    session: Session
    round: int
    model: LocalModel
    frozen_client: nn.Module | None

    def batch(self, local_step: int) -> tuple[Tensor, Tensor]:
        """Return the (inputs of ``model``, labels) of a local step.

        A frozen client model is a constant: one pass in evaluation mode makes the smashed data
        that the head trains on, and that an upload takes.
        """
        inputs, labels = self.session.batch(self.round, local_step)
        if self.frozen_client is None:
            return inputs, labels
        with torch.no_grad():
            return self.frozen_client(inputs), labels


def open_round(session: Session, request: LocalTrainRequest) -> LocalLossRound:
    """Load what the request carries, and what the client was sent once and for all.

    Raises:
        ValueError: if a frozen client was never sent its weights, or has lost them.
    """
    local = local_model(session, request)
    if not session.config(LocalLossConfig).frozen_client:
        load_parameters_(local, request.weights)
        return LocalLossRound(session, request.round, local, None)
    load_parameters_(local, request.weights | kept_weights(session, request.weights, "client"))
    return LocalLossRound(session, request.round, local.head_alone(), local.client.eval())
