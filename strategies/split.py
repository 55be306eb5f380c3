"""What all split strategies share: the two halves of the model and the server's optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from leansplit.errors import RunFailedError, UserError
from leansplit.federated import MethodConfig, OptimizerConfig, build_optimizer
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.parameters import checksum, fixed_state, trainable_parameters
from leansplit.strategies.running import RunningStrategy, log
from leansplit.wire import ClientPlan, SmashedDataReply

C = TypeVar("C", bound=MethodConfig)


class SplitStrategy(RunningStrategy, Generic[C]):
    """A strategy whose server holds ``model.server_model`` and trains it.

    Args:
        model: client and server halves; trained in place.
        loss: (outputs, labels) -> mean loss.
        config: the method's settings.
        options: see :class:`leansplit.strategies.running.RunningStrategy`.
    """

    def __init__(self, model: SplitModel, loss: Loss, config: C, **options: Any) -> None:
        super().__init__(**options)
        self.model = model
        self.loss = loss
        self.config = config
        self._server_optimizer: torch.optim.Optimizer | None = None
        self._optimizer_round = 0

    def summary(self) -> None:
        """Log the configuration."""
        log.info("%s: %s", type(self).__name__, self.config)

    def initial_arrays(self) -> ArrayRecord:
        """Return the model as it is now, under the full model's names."""
        return ArrayRecord(self.model.full_state_dict())

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model into both halves."""
        self.model.load_full_state_dict(initial_arrays.to_torch_state_dict())
        self._server_optimizer = None
        return initial_arrays

    def arrays(self) -> ArrayRecord:
        """Return the current global model under the full model's names."""
        return ArrayRecord(self.model.full_state_dict())

    def client_plan(self, run_id: str, num_clients: int) -> ClientPlan:
        """Return what clients must know.

        Raises:
            UserError: if the cohort is larger than the population.
        """
        if self.config.cohort_size > num_clients:
            raise UserError(
                f"cohort of {self.config.cohort_size} cannot be drawn from {num_clients} clients; "
                f"choose a cohort between 1 and {num_clients}"
            )
        return ClientPlan(
            run_id=run_id,
            method=self.method,
            num_clients=num_clients,
            clients_per_node=self.deployment.clients_per_node,
            root_seed=self.config.root_seed,
            batch_size=self.config.batch_size,
            local_steps=getattr(self.config, "local_steps", 1),
            client_optimizer=getattr(self.config, "client_optimizer", None),
            zeroth_order=getattr(self.config, "zeroth_order", None),
            replica_storage=self.deployment.replica_storage,
            num_threads=self.deployment.num_threads,
            workload=self.deployment.workload,
            fixed_checksum=checksum(fixed_state(self.model.client_model)),
        )

    def server_optimizer(self, config: OptimizerConfig, round: int) -> torch.optim.Optimizer | None:
        """Return the server model's optimizer: kept for the run, or fresh in every round."""
        is_stale = config.lifetime == "round" and self._optimizer_round != round
        if self._server_optimizer is None or is_stale:
            self._server_optimizer = build_optimizer(config, self.model.server_model.parameters())
        self._optimizer_round = round
        return self._server_optimizer

    def client_weights(self) -> dict[str, Tensor]:
        """Return the client model's trainable parameters."""
        return trainable_parameters(self.model.client_model)


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
