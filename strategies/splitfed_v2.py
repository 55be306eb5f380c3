"""SFLV2 (Thapa et al., "SplitFed", AAAI 2022): one server model, trained client by client.

Differs from SFLV1 in that the server keeps a single model and serves the cohort in a fresh random
order each round. ``client_order`` chooses whether a client finishes its round before the next
begins (the paper's order) or all clients advance step by step (one exchange for each step).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from leansplit.first_order import NonFiniteLossError, server_step
from leansplit.noise import server_dropout_seed
from leansplit.strategies.alternating import Served
from leansplit.strategies.splitfed import SplitFed
from leansplit.wire import SmashedDataReply


class SplitFedV2(SplitFed):
    """Clients train in parallel against one server model that serves them in turn."""

    method = "sflv2"

    def serve(self, round: int, local_step: int, uploads: Mapping[int, SmashedDataReply]) -> Served:
        """Take one step on the server model for each client in turn."""
        losses: dict[int, float] = {}
        gradients: dict[int, Tensor] = {}
        for m, reply in uploads.items():
            try:
                step = server_step(
                    self.model.server_model,
                    self.loss,
                    self.server_optimizer(self.config.server_optimizer, round),
                    [reply.smashed_data],
                    [reply.labels],
                    [1.0],
                    dropout_seed=server_dropout_seed(self.config.root_seed, round, m, local_step),
                )
            except NonFiniteLossError as error:
                losses[m] = error.losses[0]
                continue
            losses[m], gradients[m] = step.losses[0], step.smashed_gradients[0]
        return Served(losses, gradients)
