"""The two segments of a model at an order boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import nn

from leansplit.errors import require_choice
from leansplit.federated import HOFLConfig
from leansplit.models import SplitModel, cut_layers, split_at
from leansplit.parameters import ParameterDict, ParameterSpec, trainable_parameters

NONE: Final = "none"
"""The boundary below the first layer: first order throughout."""
CUT: Final = "cut"
"""The boundary at the run's cut layer."""
ALL: Final = "all"
"""The boundary above the last layer: zeroth order throughout."""


@dataclass(frozen=True)
class Segments:
    """A model's layers below and above a boundary, on the model's own parameters and names.

    Attributes:
        zeroth: the layers trained by zeroth-order steps; None if there is nothing to train.
        first: the layers trained by backpropagation; None if there are none. With ``zeroth``
            None it is the whole model.
    """

    zeroth: nn.Module | None
    first: nn.Module | None

    @property
    def zeroth_parameters(self) -> ParameterDict:
        """Trainable parameters below the boundary; views."""
        return {} if self.zeroth is None else trainable_parameters(self.zeroth)

    @property
    def first_parameters(self) -> ParameterDict:
        """Trainable parameters above the boundary; views."""
        return {} if self.first is None else trainable_parameters(self.first)

    @property
    def num_zeroth_elements(self) -> int:
        """Trainable parameters below the boundary, in elements."""
        return ParameterSpec.of(self.zeroth_parameters).num_elements


@dataclass(frozen=True, kw_only=True)
class BoundaryGroup:
    """The clients that share an order boundary.

    Attributes:
        boundary: its name, as given or chosen.
        num_zeroth_elements: d_i of these clients.
        clients: their ids, ascending.
    """

    boundary: str
    num_zeroth_elements: int
    clients: tuple[int, ...]


def boundary_groups(
    config: HOFLConfig, model: SplitModel, num_clients: int
) -> tuple[BoundaryGroup, ...]:
    """Return who got which boundary, the smallest zeroth-order segment first.

    Args:
        config: ``memory_budgets_mb`` must have been turned into boundaries.
        model: the model that is trained.
        num_clients: N.

    Raises:
        UserError: for a boundary that the model does not allow.
    """
    held: dict[str, list[int]] = {}
    for client_id, boundary in config.boundaries_of(range(num_clients)).items():
        held.setdefault(boundary, []).append(client_id)
    groups = [
        BoundaryGroup(
            boundary=boundary,
            num_zeroth_elements=segments_at(model, boundary).num_zeroth_elements,
            clients=tuple(sorted(clients)),
        )
        for boundary, clients in held.items()
    ]
    return tuple(sorted(groups, key=lambda group: (group.num_zeroth_elements, group.boundary)))


def segments_at(model: SplitModel, boundary: str) -> Segments:
    """Return the segments of ``model.full_model`` at ``boundary``.

    A boundary with nothing to train below it means the same as ``none``.

    Args:
        model: the whole model; where it is cut matters to the boundary ``cut`` only.
        boundary: ``none``, ``cut``, ``all``, or a layer that the whole model may be cut after.

    Raises:
        UserError: if there is no such layer, or no cut is possible there.
    """
    whole = model.full_model
    if boundary == NONE:
        return Segments(None, whole)
    if boundary == ALL:
        return Segments(whole, None)
    layers = {name for name, _ in whole.named_modules(remove_duplicate=False) if name}
    if boundary not in {CUT, *layers}:
        require_choice("order boundary", boundary, (NONE, CUT, ALL, *cut_layers(whole)))
    # Halves that were put together by hand are chained as layers "0" and "1".
    is_chained = isinstance(whole, nn.Sequential)
    cut_layer = model.cut_layer if not is_chained else "0"
    halves = split_at(whole, cut_layer if boundary == CUT else boundary)
    if not trainable_parameters(halves.client_model):
        return Segments(None, whole)
    return Segments(halves.client_model, halves.server_model)
