"""What a step costs each client, and who can take part: whoever has the memory for it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from leansplit.costs import StepCosts
from leansplit.costs.units import in_memory
from leansplit.errors import UserError
from leansplit.federated import MethodConfig, Presence
from leansplit.first_order import Loss
from leansplit.hybrid_order import BoundaryGroup
from leansplit.models import SplitModel
from leansplit.server_app.client_costs import measure
from leansplit.server_app.config import RunConfig
from leansplit.server_app.methods import METHODS


@dataclass(frozen=True)
class ClientCosts:
    """What one step costs.

    Attributes:
        largest: of the client that holds the most memory; where all are alike, of any.
        groups: clients that differ in their boundary.
        at_boundary: of a client at each boundary; empty where all are alike.
    """

    largest: StepCosts
    groups: tuple[BoundaryGroup, ...] = ()
    at_boundary: Mapping[str, StepCosts] = field(default_factory=dict)

    def peaks(self, num_clients: int) -> list[int]:
        """Return the peak memory of a step of client 0, 1, ..., in bytes."""
        peaks = [self.largest.peak_memory_bytes] * num_clients
        for group in self.groups:
            if group.boundary in self.at_boundary:
                for m in group.clients:
                    peaks[m] = self.at_boundary[group.boundary].peak_memory_bytes
        return peaks


def measure_clients(
    config: RunConfig,
    settings: MethodConfig,
    model: SplitModel,
    loss: Loss,
    batch: tuple[Tensor, Tensor],
    *,
    largest: StepCosts | None = None,
) -> ClientCosts:
    """Measure a client step on copies of the model and a batch; ``largest`` if it is known."""
    method = METHODS[config.method]
    groups = method.boundaries(settings, model, config.clients)
    at_boundary = {}
    if method.boundary_step is not None:
        at_boundary = {
            group.boundary: measure(
                method.boundary_step(settings, model, loss, *batch, group.boundary)
            )
            for group in sorted(groups, key=lambda group: group.boundary)
        }
    if largest is None and at_boundary:
        largest = max(at_boundary.values(), key=lambda costs: costs.peak_memory_bytes)
    elif largest is None:
        step = method.client_step(settings, copy.deepcopy(model), loss, *batch)
        largest = measure(step)
    return ClientCosts(largest, groups, at_boundary)


def attending(config: RunConfig, settings: MethodConfig, costs: ClientCosts) -> MethodConfig:
    """Return the settings with who can take part on the run's devices; as they are without any.

    Raises:
        UserError: if no client has the memory for a step.
    """
    if not config.fleet.profile:
        return settings
    devices = config.fleet.devices(config.clients, config.seed)
    peaks = costs.peaks(config.clients)
    excluded = {m for m, device in enumerate(devices) if not device.fits(peaks[m])}
    if len(excluded) == config.clients:
        most = max(device.memory_bytes or 0 for device in devices)
        raise UserError(
            f"no client has the memory for a step of {METHODS[config.method].title}: it needs "
            f"{in_memory(min(peaks))}, and clients have {in_memory(most)} at most; "
            "choose an earlier cut, a smaller batch or devices with more memory"
        )
    chances = tuple(device.availability for device in devices)
    presence = Presence(
        excluded=frozenset(excluded), availability=chances if min(chances) < 1 else ()
    )
    return dataclasses.replace(settings, presence=presence)
