"""Costs by the conventions of published tables, beside the exact ones.

HERON-SFL's Table II (arXiv 2601.09076) is reproduced by this reading; it was found by search, and
agreement in several columns supports it but is no proof:

* a multiply-accumulate is 1 FLOP, and a backward pass costs twice its forward pass;
* memory of first-order clients includes copies that only a simulation on one machine makes: z
  cloned for the server, its gradient cloned back, and with an auxiliary head the gradient at the
  detached z; that of zeroth-order clients is forward-only inference of the client model, without
  the head and without z kept for its upload;
* traffic leaves out labels and, of averaged heads, their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from leansplit.errors import UserError
from leansplit.server_app.planning import Plan

CONVENTIONS: Final = ("heron",)

# First-order methods -> tensors of z's size that only their simulation holds.
_COPIES: Final[Mapping[str, int]] = {"sflv1": 2, "sflv2": 2, "fsl-sage": 2, "cse-fsl": 3}
_AVERAGED_HEADS: Final = ("cse-fsl", "heron-sfl")


@dataclass(frozen=True)
class ByConvention:
    """A plan's costs as a table prints them.

    Attributes:
        flops: of a step; a multiply-accumulate counts 1.
        memory_bytes: peak of a step, with copies that a simulation makes.
        memory_without_copies: the same without these.
        traffic_bytes: of the run.
    """

    flops: float
    memory_bytes: int
    memory_without_copies: int
    traffic_bytes: int


def by_herons_conventions(plan: Plan, inference: Plan, batch_size: int) -> ByConvention:
    """Return what HERON-SFL's Table II would print for a plan.

    Args:
        plan: of SFLV1, SFLV2, CSE-FSL, FSL-SAGE or HERON-SFL.
        inference: of the frozen client at the same cut.
        batch_size: B.

    Raises:
        UserError: for a method that the table does not have.
    """
    if plan.method not in (*_COPIES, "heron-sfl"):
        raise UserError(
            f"HERON-SFL's Table II has no row of {plan.method}; it has "
            f"{', '.join((*_COPIES, 'heron-sfl'))}"
        )
    shape = plan.shape
    smashed = batch_size * shape.smashed_elements * shape.smashed_bytes
    memory, copies = plan.step.peak_memory_bytes, _COPIES.get(plan.method, 0) * smashed
    if plan.method == "heron-sfl":
        memory = inference.step.peak_memory_bytes
    traffic = sum(size for (_, kind), size in plan.traffic.items() if kind != "labels")
    if plan.method in _AVERAGED_HEADS:
        traffic -= 2 * plan.participations * shape.auxiliary_elements * 4
    return ByConvention(plan.step.rule_flops / 2, memory + copies, memory, traffic)
