"""CSE-FSL: communication- and storage-efficient federated split learning (arXiv 2507.15816).

Each client trains theta_c and an auxiliary head theta_a by backpropagation on its own loss
l(a(f_c(x; theta_c); theta_a), y), and uploads every k-th batch, taken before the local update; the
server trains its one model on the uploads and sends no gradient back. theta_c and theta_a are
averaged. Symbols and round: :mod:`leansplit.strategies.auxiliary`.

Differs from HERON-SFL in the client's gradient alone: exact here, estimated there.
"""

from __future__ import annotations

from leansplit.federated import CSEFSLConfig
from leansplit.strategies.local_loss import LocalLossStrategy


class CSEFSL(LocalLossStrategy[CSEFSLConfig]):
    """First-order clients with a local loss, one exchange a round."""

    method = "cse-fsl"
    train_action = "cse_fsl_train"
