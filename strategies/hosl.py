"""HOSL: hybrid-order split learning (arXiv 2601.10940), for a cohort of clients.

Clients estimate the gradient of the end-to-end loss by finite differences through the server: the
server evaluates perturbed smashed data, so no gradient at the cut is sent back. The paper has one
client (K = N = 1 here); with more, all probe the same directions on batches of their own, as in
HO-SFL, and the mean differences keep all replicas identical.

Symbols: t ``server_round``; Q ``num_perturbations``; mu ``perturbation_scale``; z
``smashed_data``; z_q+, z_q- ``plus``, ``minus``; v ``differences``; theta_c ``mirror.vector``.

One round takes one exchange (seeds down -> clean z, 2 Q perturbed z and labels up): all of them
belong to the same theta_c, so they need no answer in between, and the Q mean differences ride on
the next request. Differs from HO-SFL: no gradient down, but 2 Q + 1 smashed data up, and the true
loss is probed instead of <lambda, f_c>.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from leansplit.federated import HOSLConfig, sample_weights
from leansplit.strategies.finite_losses import refused_losses, require_some
from leansplit.strategies.replicated import ReplicatedStrategy
from leansplit.strategies.split import mean_loss, probed_form
from leansplit.strategies.wanted import Wanted
from leansplit.wire import Form, ProbedForwardRequest, ProbedSmashedDataReply
from leansplit.zeroth_order import cut_objective


class HOSL(ReplicatedStrategy[HOSLConfig]):
    """Zeroth-order clients that probe through the server, which trains by backpropagation."""

    method = "hosl"
    forward_action = "hosl_forward"

    def open_round(
        self, client_id: int, round: int, catch_up: dict[str, Any]
    ) -> ProbedForwardRequest:
        """Ask for the smashed data of every probe and of the model itself."""
        return self.probed_forward_request(round, catch_up)

    def upload_form(self, client_id: int) -> Form:
        """Return what a client's clean and probed smashed data must look like."""
        zeroth_order = self.config.zeroth_order
        return probed_form(super().upload_form(client_id), zeroth_order, with_anchor=True)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Evaluate the probes, then train the server, then share the clients' update."""
        wanted = Wanted(ProbedSmashedDataReply, self.upload_form)
        forward = self.opened(replies, server_round, wanted)
        if not forward.records:
            return self.finish_round(
                server_round, num_samples=0, train_loss=None, num_replied=0,
                failures=forward.failures,
            )  # fmt: skip
        # Phase 1. The differences of the end-to-end loss, at the server model of the last round.
        differences = {m: self.probed(reply) for m, reply in forward.records.items()}
        server_model = self.as_watched(server_round, self.model.server_model)
        objective = cut_objective(self.model.client_model, server_model, self.loss)
        sums = {m: float(v.abs().sum()) for m, v in differences.items()}
        refused = self.dropped(refused_losses(sums))
        compared = {m: reply for m, reply in forward.records.items() if m not in refused}
        require_some(server_round, sums)

        # Phase 2. One server step on the cohort's mean loss at the clean smashed data.
        batches = {m: (reply.smashed_data, reply.labels) for m, reply in compared.items()}
        heard, step, more = self.joint_step(server_round, batches, self.config.server_optimizer)
        refused |= more
        sizes = [len(batches[m][1]) for m in heard]
        losses = dict(zip(heard, step.losses, strict=True))

        # Phase 3. The mean differences, and the step that every client rebuilds from the seeds.
        self.share_update(
            server_round,
            self.round_seeds(server_round),
            {m: differences[m] for m in heard},
            dict(zip(heard, sizes, strict=True)),
            objective,
        )
        return self.finish_round(
            server_round,
            num_samples=sum(sizes),
            train_loss=mean_loss(losses, sample_weights(sizes)),
            num_replied=len(heard),
            failures=forward.failures | refused,
        )

    def probed(self, reply: ProbedSmashedDataReply) -> Tensor:
        """Return one client's v, float64 [Q]; the server model is frozen, in evaluation mode."""
        above = [self._loss_at(z, reply.labels) for z in reply.plus]
        if self.config.zeroth_order.estimator == "central":
            below = [self._loss_at(z, reply.labels) for z in reply.minus]
        else:
            below = [self._loss_at(reply.smashed_data, reply.labels)] * len(above)
        differences = [a - b for a, b in zip(above, below, strict=True)]
        return torch.tensor(differences, dtype=torch.float64)

    def _loss_at(self, smashed_data: Tensor, labels: Tensor) -> float:
        server_model = self.model.server_model.eval()
        with torch.inference_mode():
            return float(self.loss(server_model(smashed_data), labels))
