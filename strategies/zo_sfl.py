"""ZO-SFL: split federated learning with zeroth-order steps only.

The all-zeroth-order baseline that HO-SFL's authors define (arXiv 2603.14773): one central
difference of the end-to-end loss for theta = (theta_c, theta_s) jointly.

Symbols: t ``server_round``; P ``num_perturbations``; mu ``perturbation_scale``; z+ and z-
``plus`` and ``minus``; v ``differences``, not divided by mu; theta_{s,m} ``replica.vector``; u_s
the server's part of a direction.

A direction's two parts have seeds of their own, u_c at the client and u_s at the server; being
independent with E[u u^T] = I, together they are one direction for theta. Differs from MU-SplitFed
in that both sides are perturbed at the same time and step from the same scalar. All P directions
are probed at the same theta, so their smashed data travel in one message where the authors' code
takes P round trips; the estimate is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leansplit.federated import TrainedVector, ZOSFLConfig
from leansplit.noise import server_dropout_seed, server_perturbation_seeds
from leansplit.strategies.alternating import Served
from leansplit.strategies.split import probed
from leansplit.strategies.zo_split import ZOSplitStrategy
from leansplit.wire import ProbedSmashedDataReply
from leansplit.zeroth_order import ServerObjective, estimate, perturbed


class ZOSFL(ZOSplitStrategy[ZOSFLConfig]):
    """Both sides perturbed together, both stepping from one difference of losses."""

    method = "zo-sfl"

    def serve(
        self, round: int, local_step: int, uploads: Mapping[int, ProbedSmashedDataReply]
    ) -> Served:
        """Compare the two losses of every joint direction, step on the server's part of it."""
        root, zo = self.config.root_seed, self.config.zeroth_order
        losses: dict[int, float] = {}
        answers: dict[int, Tensor] = {}
        for m, upload in uploads.items():
            replica = self.replicas.of(m)
            objective = self.objective(
                upload.labels, server_dropout_seed(root, round, m, local_step)
            )
            seeds = server_perturbation_seeds(
                root, zo.num_perturbations, round=round, client_id=m, local_step=local_step
            )
            pairs = self._losses(replica, objective, seeds, upload)
            losses[m] = float(pairs.double().mean())
            if not math.isfinite(losses[m]):
                continue
            answers[m] = differences = pairs[:, 0] - pairs[:, 1]
            self.report_half("client", round, local_step, m, differences, objective)
            self.report_half("server", round, local_step, m, differences, objective, seeds)
            replica.step_(
                estimate(replica.spec, seeds, differences, zo, device=replica.vector.device)
            )
        return Served(losses, answers)

    def _losses(
        self,
        replica: TrainedVector,
        objective: ServerObjective,
        seeds: Sequence[int],
        upload: ProbedSmashedDataReply,
    ) -> Tensor:
        """F(theta_s + mu u_s, z+) and F(theta_s - mu u_s, z-) for each direction, shape [P, 2].

        With the forward difference the second is F(theta_s, z).
        """
        zo = self.config.zeroth_order
        losses = []
        for seed, (plus, minus) in zip(seeds, probed(upload).pairs, strict=True):
            below = replica.vector
            if zo.estimator == "central":
                below = perturbed(replica.vector, -zo.perturbation_scale, seed, zo)
            above = perturbed(replica.vector, zo.perturbation_scale, seed, zo)
            sides = (above, plus), (below, minus)
            losses.append(torch.stack([objective(replica.spec.views(at), z) for at, z in sides]))
        return torch.stack(losses)
