"""DeComFL: zeroth-order federated learning in which only scalars cross (ICLR 2025).

Every client holds the whole model and rebuilds each round's update from shared seeds and mean
scalars, so nothing of the model's size is sent after a client's first round.

Symbols: t ``server_round``; h ``local_steps``; P ``num_perturbations``; mu
``perturbation_scale``; v ``scalars`` (not divided by mu; the paper's projected gradient is v / mu
or v / 2 mu); theta ``mirror.vector``.

One round takes one exchange (h P seeds down -> h P scalars up); the mean scalars ride on the next
request, or on the final synchronisation. Differs from HO-SFL: there is no cut and no server model,
clients probe their own loss, and they may take h local steps. The scalars of a later step were
measured along the client's own path, but their mean is applied along the shared one, as in the
paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from leansplit.federated import DeComFLConfig
from leansplit.strategies.replicated import ReplicatedStrategy
from leansplit.strategies.wanted import Wanted
from leansplit.wire import DeComFLReply, DeComFLRequest, Form, TensorForm
from leansplit.zeroth_order import loss_objective


class DeComFL(ReplicatedStrategy[DeComFLConfig]):
    """Zeroth-order clients that hold the whole model; a server that averages scalars."""

    method = "decomfl"
    forward_action = "decomfl_probe"
    is_whole_model = True

    def seeds_of_steps(self, round: int) -> list[tuple[int, ...]]:
        """Return the seeds of the round: P for each local step."""
        zeroth_order, root_seed = self.config.zeroth_order, self.config.root_seed
        steps = range(self.config.local_steps)
        return [zeroth_order.shared_seeds(root_seed, round=round, local_step=h) for h in steps]

    def open_round(self, client_id: int, round: int, catch_up: dict[str, Any]) -> DeComFLRequest:
        """Steps 1 and 2: the round's seeds, and the updates that the client missed."""
        seeds = torch.tensor(self.seeds_of_steps(round), dtype=torch.uint32)
        return DeComFLRequest(round=round, seeds=seeds, **catch_up)

    def reply_form(self, client_id: int) -> Form:
        """Return what a client's answer must look like."""
        steps = self.config.local_steps
        return {
            "scalars": TensorForm((steps, self.config.zeroth_order.num_perturbations)),
            "num_samples": steps * self.federation.batch_size(client_id),
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 4 to 6: average scalars for each step and direction; h shared optimizer steps."""
        wanted = Wanted(DeComFLReply, self.reply_form)
        answered = self.opened(replies, server_round, wanted)
        num_samples = {m: reply.num_samples for m, reply in answered.records.items()}
        if answered.records:
            self.share_update(
                server_round,
                [seed for step in self.seeds_of_steps(server_round) for seed in step],
                {m: reply.scalars.reshape(-1) for m, reply in answered.records.items()},
                num_samples,
                loss_objective(self.model.full_model, self.loss),
            )
        return self.finish_round(
            server_round,
            num_samples=sum(num_samples.values()),
            train_loss=None,  # no client reports a loss: only scalars go up
            num_replied=len(answered.records),
            failures=answered.failures,
        )
