"""FSL-SAGE: federated split learning via smashed activation gradient estimation (ICML 2025,
arXiv 2505.23182).

The auxiliary head is a generator of gradients. A client steps theta_c along
z.backward(g), g = dl(a(z; theta_a), y)/dz, and never changes theta_a. The server keeps the newest
uploads of each client and, every l rounds, trains that client's theta_a so that g imitates
lambda = dl(f_s(z; theta_s), y)/dz at the current theta_s. theta_c is averaged; every client keeps a
head of its own. Symbols and round: :mod:`leansplit.strategies.auxiliary`; l ``alignment.period``.

Differs from CSE-FSL in that theta_a is trained at the server and travels down only, when it has
changed. Differs from the paper's code: gradients are compared sample by sample, where the code
compares a mean over the buffer with a mean over the alignment batch; heads and server model are in
evaluation mode while they are aligned; a client's head is aligned when the client next takes part,
with the server model of that time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from leansplit.federated import (
    FSLSAGEConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.first_order import align_
from leansplit.parameters import ParameterDict, load_parameters_, trainable_parameters
from leansplit.sequences import join
from leansplit.state import State
from leansplit.strategies.auxiliary import AuxiliaryStrategy
from leansplit.wire import LocalTrainReply


@dataclass
class ClientHead:
    """What the server keeps of one client."""

    weights: ParameterDict
    """theta_a of this client, without prefix."""
    is_at_client: bool = False
    """Whether the client is known to hold these weights."""
    aligned_in: int = 0
    """The round of the last alignment; 0 if there was none."""
    smashed_data: Tensor | None = None
    """The newest uploads, [n, ...]; None if there are none."""
    labels: Tensor = field(default_factory=lambda: torch.empty(0))
    moments: dict[str, Tensor] = field(default_factory=dict)

    def state(self) -> State:
        """Return everything by name."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if value is not None}


class FSLSAGE(AuxiliaryStrategy[FSLSAGEConfig]):
    """First-order clients that imitate the server's gradient, one exchange a round."""

    method = "fsl-sage"
    train_action = "fsl_sage_train"

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model and forget all heads and buffers."""
        self.heads: dict[int, ClientHead] = {}
        return super().begin(initial_arrays)

    def state(self) -> State:
        """Return also the clients' heads and buffers."""
        return {**super().state(), "heads": {m: head.state() for m, head in self.heads.items()}}

    def load_state_(self, state: State) -> None:
        """Take also the heads and buffers."""
        super().load_state_(state)
        self.heads = {int(m): ClientHead(**head) for m, head in state["heads"].items()}

    def forget_clients(self, client_ids: Iterable[int]) -> None:
        """Clients without a memory are sent their heads again."""
        for m in self.heads.keys() & set(client_ids):
            self.heads[m].is_at_client = False

    def weights_for(self, client_id: int, round: int) -> ParameterDict:
        """Align the client's head if that is due; return theta_c, and theta_a if it is new."""
        initial = trainable_parameters(self.local.auxiliary)
        head = self.heads.setdefault(client_id, ClientHead(initial))
        is_due = not head.aligned_in or round - head.aligned_in >= self.config.alignment.period
        if head.smashed_data is not None and is_due:
            self._align(client_id, head, round)
        weights = self.trained_weights()
        if not head.is_at_client:
            weights |= {f"auxiliary.{k}": v for k, v in head.weights.items()}
        head.is_at_client = False  # until the client answers: it may have lost its memory
        return weights

    def trained_weights(self) -> ParameterDict:
        """Return theta_c: clients never change their heads."""
        return {f"client.{name}": value for name, value in self.client_weights().items()}

    def _align(self, client_id: int, head: ClientHead, round: int) -> None:
        """Train the client's theta_a on its buffer against the current theta_s."""
        assert head.smashed_data is not None
        config = self.config
        module = copy.deepcopy(self.local.auxiliary)
        load_parameters_(module, head.weights)
        optimizer = build_optimizer(config.alignment_optimizer, module.parameters())
        load_optimizer_state_(optimizer, head.moments)
        align_(
            module,
            self.model.server_model,
            self.loss,
            optimizer,
            head.smashed_data,
            head.labels,
            epochs=config.alignment.epochs,
            batch_size=config.alignment.batch_size,
            root_seed=config.root_seed,
            round=round,
            client_id=client_id,
        )
        head.weights = trainable_parameters(module)
        if config.alignment_optimizer.outlives_round:
            head.moments = optimizer_state(optimizer)
        head.aligned_in, head.is_at_client = round, False

    def absorb(self, round: int, replies: Mapping[int, LocalTrainReply]) -> None:
        """Append the uploads to the clients' buffers; who answered holds its head."""
        for m, reply in replies.items():
            head = self.heads[m]
            head.is_at_client = True
            old = [] if head.smashed_data is None else [(head.smashed_data, head.labels)]
            z, y = (join(batches) for batches in zip(*old, *reply.uploads, strict=True))
            newest = self.config.alignment.max_samples
            head.smashed_data, head.labels = z[-newest:].clone(), y[-newest:].clone()
