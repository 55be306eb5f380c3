"""HERON-SFL: zeroth-order clients with a local loss (arXiv 2601.09076).

Each client trains theta_l = (theta_c, theta_a) by zeroth-order steps on its own loss

    g = 1/(P mu) sum_p [F(theta_l + mu u_p) - F(theta_l)] u_p
    F = l(a(f_c(x; theta_c); theta_a), y)

with one direction over client model and head, and uploads the smashed data of every k-th
unperturbed pass. The server trains its one model on the uploads, client by client, and sends no
gradient back; theta_c and theta_a are averaged. Symbols and round:
:mod:`leansplit.strategies.auxiliary`; P ``num_perturbations``; mu ``perturbation_scale``.

Differs from CSE-FSL in the client's gradient alone. Differs from the paper: no factor d with
Gaussian directions (its Eq. 2 has one, its Eq. 4 has not); the mean over all N clients is over the
cohort, weighted by samples, which is the paper's under full participation and equal batches; the
server takes one step for each upload, as the paper's text says (``server_mode = summed`` is its
Eq. 7).
"""

from __future__ import annotations

from collections.abc import Mapping

from leansplit.federated import HeronSFLConfig
from leansplit.strategies.local_loss import LocalLossStrategy
from leansplit.wire import LocalTrainReply
from leansplit.zeroth_order import local_loss_objective


class HeronSFL(LocalLossStrategy[HeronSFLConfig]):
    """Zeroth-order clients with a local loss, one exchange a round."""

    method = "heron-sfl"
    train_action = "heron_sfl_train"

    def absorb(self, round: int, replies: Mapping[int, LocalTrainReply]) -> None:
        """Let watchers see the estimates too, at the weights that clients were sent."""
        super().absorb(round, replies)
        objective = local_loss_objective(self.local, self.loss)
        self.report_private_probes(round, replies, self.trained_weights(), objective, self.config)
