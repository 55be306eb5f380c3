"""What all split strategies share: the two halves of the model and the server's optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from leansplit.errors import RunFailedError
from leansplit.federated import (
    MethodConfig,
    NoisedConfig,
    OptimizerConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.models.batch_statistics import refuse_mixing
from leansplit.state import State
from leansplit.strategies.running import RunningStrategy, log
from leansplit.wire import ABSENT, Form, ProbedSmashedDataReply, SmashedDataReply, TensorForm
from leansplit.zeroth_order import ProbedSmashedData, ZerothOrderConfig

C = TypeVar("C", bound=MethodConfig)


class SplitStrategy(RunningStrategy, Generic[C]):
    """A strategy whose server holds ``model.server_model`` and trains it.

    Args:
        model: client and server halves; trained in place.
        loss: (outputs, labels) -> mean loss.
        config: the method's settings.
        options: see :class:`leansplit.strategies.running.RunningStrategy`.
    """

    not_state: ClassVar[Sequence[str]] = ("loss", "_server_optimizer")

    def __init__(self, model: SplitModel, loss: Loss, config: C, **options: Any) -> None:
        super().__init__(**options)
        self.model = model
        self.loss = loss
        self.config: C = config
        self._server_optimizer: torch.optim.Optimizer | None = None
        self._optimizer_round = 0
        self._server_moments: Mapping[str, Tensor] = {}

    def summary(self) -> None:
        """Log the configuration."""
        log.info("%s: %s", type(self).__name__, self.config)

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model into both halves.

        Raises:
            UserError: if samples are to be protected that the client model mixes.
        """
        if isinstance(self.config, NoisedConfig) and self.config.privacy.is_on:
            refuse_mixing(self.model.client_model)
        self._server_optimizer, self._server_moments = None, {}
        return super().begin(initial_arrays)

    def server_optimizer(self, config: OptimizerConfig, round: int) -> torch.optim.Optimizer | None:
        """Return the optimizer for the server model's next step, as new as its lifetime asks."""
        is_new_round = self._optimizer_round != round
        is_stale = is_new_round and not config.outlives_round
        if self._server_optimizer is None or is_stale:
            self._server_optimizer = build_optimizer(config, self.model.server_model.parameters())
            if not is_stale:
                load_optimizer_state_(self._server_optimizer, self._server_moments)
        self._optimizer_round = round
        return self._server_optimizer

    def state(self) -> State:
        """Return also the moments of the server's optimizer."""
        moments = self._server_moments
        if self._server_optimizer is not None:
            moments = optimizer_state(self._server_optimizer)
        return {
            **super().state(),
            "_server_moments": moments,
            "_optimizer_round": self._optimizer_round,
        }

    def load_state_(self, state: State) -> None:
        """Take also the moments, for when the optimizer is built."""
        super().load_state_(state)
        self._server_moments = state["_server_moments"]
        self._optimizer_round = state["_optimizer_round"]

    def upload_form(self, client_id: int) -> Form:
        """Return what a client's smashed data and labels of one batch must look like."""
        return self.federation.samples[client_id].stacked(self.federation.batch_size(client_id))


def split_replies(
    records: Mapping[int, SmashedDataReply],
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Return smashed data, labels and batch sizes in the order of the records."""
    replies = list(records.values())
    return (
        [reply.smashed_data for reply in replies],
        [reply.labels for reply in replies],
        [len(reply.labels) for reply in replies],
    )


def probed_form(upload: Form, config: ZerothOrderConfig, *, with_anchor: bool) -> Form:
    """Return what smashed data at and around theta_c must look like.

    Args:
        upload: the form of a plain upload.
        config: says how many probes there are, and on which sides.
        with_anchor: whether z at theta_c itself goes up with them.
    """
    z = upload["smashed_data"]
    assert isinstance(z, TensorForm)
    probes = z.stacked(config.num_perturbations)
    return {
        **upload,
        "smashed_data": z if with_anchor else ABSENT,
        "plus": probes,
        "minus": probes if config.estimator == "central" else ABSENT,
    }


def probed(upload: ProbedSmashedDataReply) -> ProbedSmashedData:
    """Return what a client probed."""
    return ProbedSmashedData(upload.smashed_data, upload.plus, upload.minus)


def require_finite(what: str, round: int, values: Mapping[int, float]) -> None:
    """Stop the run at the first value that is not finite.

    Args:
        what: what the values are, such as "loss".
        round: the current round.
        values: client id -> value.

    Raises:
        RunFailedError: naming the round and the client.
    """
    for client_id, value in values.items():
        if not math.isfinite(value):
            raise RunFailedError(
                f"non-finite {what} ({value}) in round {round} from client {client_id}; lower the "
                "learning rates, or check that client's data"
            )


def mean_loss(losses: Mapping[int, float], weights: list[float]) -> float:
    """Return the weighted mean of the clients' losses."""
    return sum(w * value for w, value in zip(weights, losses.values(), strict=True))
