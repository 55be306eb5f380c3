"""One model on one device: zeroth order below a boundary, first order above it."""

from leansplit.hybrid_order.memory import fit_boundaries
from leansplit.hybrid_order.segments import (
    ALL,
    CUT,
    NONE,
    BoundaryGroup,
    Segments,
    boundary_groups,
    segments_at,
)
from leansplit.hybrid_order.training import HybridTraining, measurable_step, replay

__all__ = [
    "ALL",
    "CUT",
    "NONE",
    "BoundaryGroup",
    "HybridTraining",
    "Segments",
    "boundary_groups",
    "fit_boundaries",
    "measurable_step",
    "replay",
    "segments_at",
]
