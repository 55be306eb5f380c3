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

With ``probe_ahead`` one exchange makes a round: (seeds down -> z and all perturbed z up). The
server, which finds lambda, takes the inner products itself: the same v, so the same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from leansplit.federated import HOSFLConfig, sample_weights
from leansplit.strategies.failures import Failure
from leansplit.strategies.federation import Replies
from leansplit.strategies.replicated import ReplicatedStrategy
from leansplit.strategies.split import mean_loss, probed, probed_form
from leansplit.strategies.wanted import Wanted
from leansplit.wire import (
    DecodeError,
    Form,
    ProbedSmashedDataReply,
    ProbeReply,
    ProbeRequest,
    Record,
    SmashedDataReply,
    TensorForm,
    require_form,
)
from leansplit.zeroth_order import surrogate_differences, surrogate_objective


class HOSFL(ReplicatedStrategy[HOSFLConfig]):
    """Zeroth-order clients, first-order server, no model ever sent after the first round."""

    method = "ho-sfl"

    @property
    def forward_action(self) -> str:
        """Action of the request that opens a round."""
        return "ho_sfl_probe_ahead" if self.config.probe_ahead else "ho_sfl_forward"

    @property
    def upload_type(self) -> type[SmashedDataReply]:
        """What clients answer it with."""
        return ProbedSmashedDataReply if self.config.probe_ahead else SmashedDataReply

    def open_round(self, client_id: int, round: int, catch_up: dict[str, Any]) -> Record:
        """Ask for smashed data, with ``probe_ahead`` also for those of every probe."""
        if self.config.probe_ahead:
            return self.probed_forward_request(round, catch_up)
        return super().open_round(client_id, round, catch_up)

    def upload_form(self, client_id: int) -> Form:
        """Return what a client's smashed data and labels must look like."""
        form = super().upload_form(client_id)
        if self.config.probe_ahead:
            return probed_form(form, self.config.zeroth_order, with_anchor=True)
        return form

    def probe_form(self, client_id: int) -> Form:
        """Return what a client's answer to a probe must look like."""
        return {"scalars": TensorForm((self.config.zeroth_order.num_perturbations,))}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 4 to 7: server step, lambda down, scalars up, mean, one shared update."""
        forward = self.opened(replies, server_round, Wanted(self.upload_type, self.upload_form))
        if not forward.records:
            return self.finish_round(
                server_round, num_samples=0, train_loss=None, num_replied=0,
                failures=forward.failures,
            )  # fmt: skip

        # 4. One server step on the cohort's mean loss; lambda_m for each client.
        batches = {m: (reply.smashed_data, reply.labels) for m, reply in forward.records.items()}
        heard, step, refused = self.joint_step(server_round, batches, self.config.server_optimizer)
        sizes = [len(batches[m][1]) for m in heard]
        weights = sample_weights(sizes)
        losses = dict(zip(heard, step.losses, strict=True))

        # 5. P shared directions are probed against each client's lambda.
        lambdas = dict(zip(heard, step.smashed_gradients, strict=True))
        if self.config.paper_code_scaling:
            shares = zip(lambdas.items(), weights, strict=True)
            lambdas = {m: weight * gradient for (m, gradient), weight in shares}
        if self.config.probe_ahead:
            probes = self.probes_compared(forward.records, lambdas)
        else:
            probes = self.probes_asked_for(server_round, lambdas)
        answered, failures = self.quorum.of(
            probes.records, forward.failures | refused | probes.failures, len(self._cohort)
        )

        # 6. The mean of the scalars. 7. The update that every replica takes, the mirror first.
        if answered:
            scalars = {m: reply.scalars for m, reply in answered.items()}
            size_of = dict(zip(heard, sizes, strict=True))
            objective = surrogate_objective(self.model.client_model, lambdas)
            seeds = self.round_seeds(server_round)
            self.share_update(server_round, seeds, scalars, size_of, objective)
        return self.finish_round(
            server_round,
            num_samples=sum(sizes),
            train_loss=mean_loss(losses, weights),
            num_replied=len(answered),
            failures=failures,
        )

    def probes_asked_for(self, round: int, lambdas: Mapping[int, Tensor]) -> Replies[ProbeReply]:
        """Send lambda and the seeds down; clients probe and answer with their scalars."""
        seeds = torch.tensor(self.round_seeds(round), dtype=torch.uint32)

        def request(m: int, catch_up: dict[str, Any]) -> ProbeRequest:
            return ProbeRequest(
                round=round,
                smashed_gradient=lambdas[m],
                seeds=seeds,
                **{"target_version": self.mirror.version, **catch_up},
            )

        return self.ask(
            {m: request(m, {}) for m in lambdas},
            request,
            "ho_sfl_probe",
            round,
            Wanted(ProbeReply, self.probe_form),
        )

    def probes_compared(
        self, uploads: Mapping[int, SmashedDataReply], lambdas: Mapping[int, Tensor]
    ) -> Replies[ProbeReply]:
        """Give the answers that clients would give, from the probes that went up already.

        They are rounded as they would be on their way, and held to the same form.
        """
        answers: dict[int, ProbeReply] = {}
        refused: dict[int, Failure] = {}
        for m, smashed_gradient in lambdas.items():
            upload = uploads[m]
            assert isinstance(upload, ProbedSmashedDataReply)
            v = surrogate_differences(smashed_gradient, probed(upload), self.config.micro_batch)
            answer = ProbeReply(scalars=v.float())
            try:
                require_form(answer, self.probe_form(m))
            except DecodeError as error:
                refused[m] = Failure.refused(error)
            else:
                answers[m] = answer
        return Replies(answers, self.dropped(refused))
