"""One client's view of one message: its data, its memory, the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from leansplit.allocation import allocated_as
from leansplit.clients.attacks import attack_of, relabelled
from leansplit.clients.memory import ClientMemory
from leansplit.clients.workload import Worker
from leansplit.federated import (
    ClientData,
    MethodConfig,
    batch_at,
    num_samples_of,
    samples_at,
)
from leansplit.first_order import Loss
from leansplit.wire import ClientPlan

C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class Session:
    """What a handler is given beside the request."""

    client_id: int
    plan: ClientPlan
    worker: Worker
    memory: ClientMemory

    def config(self, kind: type[C]) -> C:
        """Return the method's settings.

        Raises:
            TypeError: if the plan is of another method.
        """
        if not isinstance(self.plan.config, kind):
            raise TypeError(f"the plan is of {self.plan.method}, which has no {kind.__name__}")
        return self.plan.config

    @property
    def data(self) -> ClientData:
        """The client's samples; those of a hostile one may be under wrong labels."""
        data = self.worker.client_data(self.client_id)
        attack = attack_of(self.plan, self.client_id)
        return relabelled(attack, data, self.worker.workload.num_classes)

    @property
    def client_model(self) -> nn.Module:
        """The layers below the cut; shared by the clients of this process, so never rely on
        what another message left in its parameters.
        """
        return self.worker.workload.model.client_model

    @property
    def client_model_to_evaluate(self) -> nn.Module:
        """:attr:`client_model` in evaluation mode, as clients that only run it forward need it."""
        model = self.client_model
        # Looking costs a sixth of switching, and between such clients nothing is to be switched.
        return model.eval() if any(module.training for module in model.modules()) else model

    @property
    def loss(self) -> Loss:
        """The loss, for clients that evaluate it themselves.

        Raises:
            ValueError: if the app was made without one.
        """
        if self.worker.workload.loss is None:
            raise ValueError("this method needs a loss at the client; pass `loss` to the app")
        return self.worker.workload.loss

    def here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of a request or of the memory where the model is.

        Not for what the server rebuilds bit for bit, such as replicas: devices round differently.
        """
        with allocated_as(None):  # a device has them there as they come
            return {name: tensor.to(self.worker.device) for name, tensor in tensors.items()}

    def batch(self, round: int, local_step: int = 0) -> tuple[Tensor, Tensor]:
        """Return the (inputs, labels) of one step, where the model is."""
        data, config = self.data, self.plan.config
        order = self.worker.sample_order(
            config.root_seed, round, self.client_id, num_samples_of(data)
        )
        inputs, labels = samples_at(data, batch_at(order, local_step, config.batch_size))
        return inputs.to(self.worker.device), labels.to(self.worker.device)
