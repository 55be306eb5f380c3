"""Messages of the methods whose clients train against an auxiliary head: one exchange a round."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leansplit.parameters import ParameterDict
from leansplit.wire.records.base import Record, payload


@dataclass(frozen=True, kw_only=True)
class LocalTrainRequest(Record):
    """CSE-FSL, HERON-SFL and FSL-SAGE, server to client: take all local steps of a round."""

    round: int
    weights: ParameterDict = payload("weights", many=True)
    """theta_c as ``client.<name>``; theta_a as ``auxiliary.<name>``, where the client needs it."""
    auxiliary_checksum: str
    """Of the auxiliary head's frozen parameters and buffers, which the client builds itself."""


@dataclass(frozen=True, kw_only=True)
class LocalTrainReply(Record):
    """CSE-FSL, HERON-SFL and FSL-SAGE, client to server: what a round's local steps made.

    The papers upload every batch as soon as it is there; here the U uploads of a round share one
    message, since the server's answer to them is not needed before the next round.
    """

    weights: ParameterDict = payload("weights", many=True)
    """Trained weights, named as in the request."""
    smashed_data: ParameterDict = payload("smashed_data", many=True)
    """z [B, ...] of upload ``"0"`` to ``"U - 1"``, each taken before the step that followed it."""
    labels: ParameterDict = payload("labels", many=True)
    """y [B, ...] of every upload."""
    num_samples: int
    """Samples that the client trained on, uploaded or not."""

    @property
    def uploads(self) -> list[tuple[Tensor, Tensor]]:
        """(z, y) of every upload, in the order of the local steps."""
        return [(self.smashed_data[str(u)], self.labels[str(u)]) for u in range(len(self.labels))]
