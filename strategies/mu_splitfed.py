"""MU-SplitFed: unbalanced zeroth-order split federated learning (arXiv 2510.21155, NeurIPS 2025).

While a client waits, its server replica takes tau zeroth-order steps on the same smashed data;
then it tells the client which of its perturbations lowered the loss.

Symbols: t ``server_round``; tau ``tau``; eta_g ``global_lr``; lambda (here mu)
``perturbation_scale``; P ``num_perturbations`` (the paper's is 1); h ``smashed_data``; h+ and h-
``plus`` and ``minus``; delta_c ``differences``; theta_{s,m} ``replica.vector``.

Differs from ZO-SFL in that the two sides are probed apart: the server steps on the unperturbed h,
and the client's scalars are taken at the server model *after* these steps. Differs from the paper
in that any P and any optimizer can be chosen and means are weighted by samples; see
docs/methods/mu-splitfed.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leansplit.federated import MUSplitFedConfig, aggregate
from leansplit.first_order import NonFiniteLossError
from leansplit.noise import server_dropout_seed, server_perturbation_seeds
from leansplit.parameters import ParameterDict
from leansplit.strategies.alternating import Served
from leansplit.strategies.split import probed
from leansplit.strategies.zo_split import ZOSplitStrategy
from leansplit.wire import ProbedSmashedDataReply
from leansplit.zeroth_order import SumObjective, estimate, probe


class MUSplitFed(ZOSplitStrategy[MUSplitFedConfig]):
    """tau zeroth-order server steps for each zeroth-order client step."""

    method = "mu-splitfed"

    def serve(
        self, round: int, local_step: int, uploads: Mapping[int, ProbedSmashedDataReply]
    ) -> Served:
        """Train each client's replica on h, then compare h+ and h- under it."""
        losses: dict[int, float] = {}
        answers: dict[int, Tensor] = {}
        for m, upload in uploads.items():
            # 3. tau steps on theta_{s,m}, all with the h of the unperturbed client.
            try:
                for s in range(self.config.tau):
                    self._server_step(round, local_step, s, m, upload)
            except NonFiniteLossError as error:
                losses[m] = error.losses[0]
                continue

            # 4. delta_c = F(theta_s, h+) - F(theta_s, h-) with the updated theta_{s,m}.
            replica = self.replicas.of(m)
            seed = server_dropout_seed(self.config.root_seed, round, m, local_step, self.config.tau)
            objective = self.objective(upload.labels, seed)
            pairs = torch.stack(
                [
                    torch.stack([objective(replica.parameters, z) for z in pair])
                    for pair in probed(upload).pairs
                ]
            )  # [P, 2]
            losses[m] = float(pairs.double().mean())
            if not math.isfinite(losses[m]):
                continue
            answers[m] = pairs[:, 0] - pairs[:, 1]
            self.report_half("client", round, local_step, m, answers[m], objective)
        return Served(losses, answers)

    def _server_step(
        self, round: int, local_step: int, server_step: int, m: int, upload: ProbedSmashedDataReply
    ) -> None:
        """theta_s -= eta_s / (2 lambda) [F(theta_s + lambda u, h) - F(theta_s - lambda u, h)] u.

        Raises:
            NonFiniteLossError: if a difference is not finite; no step is taken.
        """
        root, zo, replica = self.config.root_seed, self.config.zeroth_order, self.replicas.of(m)
        objective = self.objective(
            upload.labels, server_dropout_seed(root, round, m, local_step, server_step)
        )
        seeds = server_perturbation_seeds(
            root,
            zo.num_perturbations,
            round=round,
            client_id=m,
            local_step=local_step,
            server_step=server_step,
        )
        differences = probe(
            SumObjective(lambda parameters: objective(parameters, upload.smashed_data)),
            replica.spec,
            replica.vector,
            seeds,
            zo,
        )
        if not differences.isfinite().all():
            raise NonFiniteLossError([float(differences.abs().sum())])
        if server_step == 0:
            self.report_half("server", round, local_step, m, differences, objective, seeds)
        replica.step_(estimate(replica.spec, seeds, differences, zo, device=replica.vector.device))

    # 6. theta <- theta + eta_g mean_m(theta_m - theta), both halves.

    def mean_client(
        self, states: Sequence[ParameterDict], weights: Sequence[float]
    ) -> ParameterDict:
        """Move the client model towards the mean of the clients'."""
        config = self.config
        return aggregate(states, weights, self.round_weights, config.robust, config.global_lr)

    def end_server_round(self, weights: Mapping[int, float]) -> None:
        """Move the server model towards the mean of the replicas."""
        self.replicas.end_round(weights, self.config.global_lr)
