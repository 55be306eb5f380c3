"""Auxiliary heads of language models: a pooled linear layer, or the server's first blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from leansplit.errors import UserError
from leansplit.models.language.halves import HeldElsewhere, LanguageServerModel
from leansplit.parameters import copied
from leansplit.sequences import unpack

if TYPE_CHECKING:
    from leansplit.models.auxiliary import AuxiliaryConfig


class PooledHead(nn.Module):
    """The mean hidden state of all tokens, padding left out, and one linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, smashed_data: Tensor) -> Tensor:
        """Map packed smashed data [B, S, D + 1] to scores [B, C]."""
        hidden, mask = unpack(smashed_data)
        weights = mask.to(self.fc.weight.dtype).unsqueeze(-1)
        mean = (hidden.to(weights.dtype) * weights).sum(1) / weights.sum(1).clamp(min=1)
        scores: Tensor = self.fc(mean)
        return scores


def language_head(
    config: AuxiliaryConfig, server_model: LanguageServerModel | HeldElsewhere, width: int
) -> nn.Module:
    """Build the auxiliary head of a language model.

    Heads of blocks start from the server's weights and train what the server trains of them: its
    adapters and a classification head. The frozen base is shared with the server model.

    Args:
        config: kind and initial weights.
        server_model: the layers above the cut; for a linear head its outputs are enough.
        width: D of the hidden states.

    Raises:
        UserError: if there is no such head for what the model puts out.
    """
    if config.kind == "linear":
        if server_model.outputs != "classes" or config.initialise != "random":
            raise UserError(
                "auxiliary.kind=linear of a language model puts out classes and starts at random; "
                "where tokens are predicted use auxiliary.kind=blocks or copy with "
                "auxiliary.initialise=server"
            )
        return PooledHead(width, server_model.num_classes)
    if config.initialise != "server":
        raise UserError(
            f"auxiliary.kind={config.kind} of a language model starts from the server's pretrained "
            "blocks; set auxiliary.initialise=server, or use auxiliary.kind=linear"
        )
    assert isinstance(server_model, LanguageServerModel), "clients load the blocks of their head"
    is_copy = config.kind == "copy"
    head = copied(server_model if is_copy else server_model.first_blocks(config.num_blocks))
    head.is_chunked = True  # a client has no room for the logits of a whole batch
    return head
