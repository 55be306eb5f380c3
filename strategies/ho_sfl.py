"""HO-SFL: hybrid-order split federated learning (arXiv 2603.14773, ICML 2026).

The multiplier that makes the Lagrangian of z = f_c(x; theta_c) stationary is lambda = dl/dz, so a
client's problem is min <lambda, f_c(x; theta_c)>, which it solves with forward passes only.

Symbols: t ``server_round``; K ``cohort_size``; P ``num_perturbations``; mu
``perturbation_scale``; z ``smashed_data``; lambda ``smashed_gradient``; v ``scalars``; theta_c
``mirror.vector``; w_m ``weights`` (a client's share of the round's samples; the paper's 1/K for
equal batches).

One round takes two exchanges: (z up -> lambda, seeds down) and (v up -> nothing); the mean v of
round t rides on the next request, or on the final synchronisation. Differs from the paper's code:
clients really replay what they missed, optimizer state included, and lambda carries no 1/K
(``paper_code_scaling`` puts it back).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from leansplit.federated import HOSFLConfig, sample_weights
from leansplit.first_order import server_step
from leansplit.noise import perturbation_seeds, server_dropout_seed
from leansplit.strategies.replicated import ReplicatedStrategy
from leansplit.strategies.split import mean_loss, require_finite, split_replies
from leansplit.strategies.wanted import Wanted
from leansplit.wire import Form, ProbeReply, ProbeRequest, SmashedDataReply, TensorForm
from leansplit.zeroth_order import surrogate_objective


class HOSFL(ReplicatedStrategy[HOSFLConfig]):
    """Zeroth-order clients, first-order server, no model ever sent after the first round."""

    method = "ho-sfl"
    forward_action = "ho_sfl_forward"

    def probe_form(self, client_id: int) -> Form:
        """Return what a client's answer to a probe must look like."""
        return {"scalars": TensorForm((self.config.zeroth_order.num_perturbations,))}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 4 to 7: server step, lambda down, scalars up, mean, one shared update."""
        forward = self.opened(replies, server_round, Wanted(SmashedDataReply, self.upload_form))
        if not forward.records:
            return self.finish_round(
                server_round, num_samples=0, train_loss=None, num_replied=0,
                failures=forward.failures,
            )  # fmt: skip

        # 4. One server step on the cohort's mean loss; lambda_m for each client.
        smashed, labels, sizes = split_replies(forward.records)
        weights = sample_weights(sizes)
        step = server_step(
            self.model.server_model,
            self.loss,
            self.server_optimizer(self.config.server_optimizer, server_round),
            smashed,
            labels,
            weights,
            dropout_seed=server_dropout_seed(self.config.root_seed, server_round),
        )
        losses = dict(zip(forward.records, step.losses, strict=True))
        require_finite("loss", server_round, losses)

        # 5. Clients probe P shared directions against their lambda.
        seeds = perturbation_seeds(
            self.config.root_seed, self.config.zeroth_order.num_perturbations, round=server_round
        )
        lambdas = dict(zip(forward.records, step.smashed_gradients, strict=True))
        if self.config.paper_code_scaling:
            shares = zip(lambdas.items(), weights, strict=True)
            lambdas = {m: weight * gradient for (m, gradient), weight in shares}

        def probe_request(m: int, catch_up: dict[str, Any]) -> ProbeRequest:
            return ProbeRequest(
                round=server_round,
                smashed_gradient=lambdas[m],
                seeds=torch.tensor(seeds, dtype=torch.uint32),
                **{"target_version": self.mirror.version, **catch_up},
            )

        probes = self.ask(
            {m: probe_request(m, {}) for m in lambdas},
            probe_request,
            "ho_sfl_probe",
            server_round,
            Wanted(ProbeReply, self.probe_form),
        )
        answered, failures = self.quorum.of(
            probes.records, forward.failures | probes.failures, len(self._cohort)
        )

        # 6. The mean of the scalars. 7. The update that every replica takes, the mirror first.
        if answered:
            scalars = {m: reply.scalars for m, reply in answered.items()}
            size_of = dict(zip(forward.records, sizes, strict=True))
            objective = surrogate_objective(self.model.client_model, lambdas)
            self.share_update(server_round, seeds, scalars, size_of, objective)
        return self.finish_round(
            server_round,
            num_samples=sum(sizes),
            train_loss=mean_loss(losses, weights),
            num_replied=len(answered),
            failures=failures,
        )
