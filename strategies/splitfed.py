"""Split federated learning (Thapa et al., "SplitFed", AAAI 2022): the round of both variants.

Symbols: h ``local_step``; z ``smashed_data``; lambda ``smashed_gradient``; theta_c
``client_weights``. Round and exchanges: :mod:`leansplit.strategies.alternating`; the server answers
z with lambda. How it trains is the variants'.
"""

from __future__ import annotations

from flwr.app import ArrayRecord
from torch import Tensor

from leansplit.federated import SplitFedConfig
from leansplit.models.batch_statistics import refuse_micro_batches
from leansplit.strategies.alternating import AlternatingStrategy
from leansplit.wire import BackwardRequest, SmashedDataReply


class SplitFed(AlternatingStrategy[SplitFedConfig, SmashedDataReply]):
    """The part of a round that SFLV1 and SFLV2 share."""

    forward_action = "splitfed_forward"
    step_action = "splitfed_backward"
    upload_type = SmashedDataReply

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model.

        Raises:
            UserError: if a layer keeps running batch statistics, or cannot run micro-batches that
                were asked for.
        """
        if self.config.micro_batch:
            refuse_micro_batches(self.model.client_model)
        return super().begin(initial_arrays)

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients keep the moments of their optimizers."""
        return self.config.client_optimizer.outlives_round

    def turns(self, cohort: list[int], order: list[int]) -> list[list[int]]:
        """Return all clients at once, or one after the other."""
        if self.config.client_order == "sequential":
            return [[m] for m in order]
        return super().turns(cohort, order)

    def answer(self, round: int, local_step: int, is_last: bool, tensor: Tensor) -> BackwardRequest:
        """Send lambda down."""
        return BackwardRequest(
            round=round, local_step=local_step, is_last=is_last, smashed_gradient=tensor
        )
