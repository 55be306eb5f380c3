"""What the plain loops of CSE-FSL, HERON-SFL and FSL-SAGE share: head, server, averages."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leansplit.federated import (
    AuxiliaryMethodConfig,
    ClientData,
    aggregate,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    sample_weights,
    service_order,
    take_batch,
    weighted_mean,
)
from leansplit.first_order import Loss
from leansplit.models import LocalModel, SplitModel, build_auxiliary
from leansplit.noise import auxiliary_seed, server_dropout_seed, torch_seeded
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.sequences import join

Upload = tuple[Tensor, Tensor]
"""(z, y) of one uploaded batch."""


def with_head(
    model: SplitModel, clients: Sequence[ClientData], config: AuxiliaryMethodConfig
) -> LocalModel:
    """Return the client model with a new auxiliary head."""
    with torch.inference_mode():
        shape = tuple(model.client_model.eval()(clients[0].inputs[:1]).shape[1:])
    head = build_auxiliary(config.auxiliary, model, shape, seed=auxiliary_seed(config.root_seed))
    return LocalModel(model.client_model, head)


def average_(
    local: LocalModel,
    trained: Mapping[int, Mapping[str, Tensor]],
    num_samples: Mapping[int, int],
    config: AuxiliaryMethodConfig,
) -> None:
    """Put the sample-weighted mean of what the clients trained into ``local``."""
    shares, start = sample_weights(list(num_samples.values())), trainable_parameters(local)
    load_parameters_(local, aggregate(list(trained.values()), shares, start, config.robust))


def samples_of(
    clients: Sequence[ClientData], cohort: Sequence[int], config: AuxiliaryMethodConfig, round: int
) -> dict[int, int]:
    """Return client id -> samples of a round's local steps."""
    seed, size = config.root_seed, config.batch_size
    return {
        m: sum(
            len(take_batch(clients[m], seed, round, m, h, batch_size=size)[1])
            for h in range(config.local_steps)
        )
        for m in cohort
    }


class Server:
    """The server's half: one model, or one replica for each client."""

    def __init__(self, model: SplitModel, loss: Loss, config: AuxiliaryMethodConfig) -> None:
        self.model = model.server_model
        self.loss = loss
        self.config = config
        self.moments: dict[str, Tensor] = {}

    def train(
        self, round: int, uploads: Mapping[int, Sequence[Upload]], num_samples: Mapping[int, int]
    ) -> None:
        """Train on a round's uploads (client id -> batches in the order of the local steps)."""
        config, seed = self.config, self.config.root_seed
        kept = self.moments if config.server_optimizer.outlives_round else {}
        steps = list(enumerate(config.upload_steps))
        order = service_order(seed, round, sorted(uploads))

        if config.server_mode == "averaged":
            states, moments = [], []
            for m in uploads:
                replica = copy.deepcopy(self.model).train()
                optimizer = build_optimizer(config.server_optimizer, replica.parameters())
                assert optimizer is not None
                load_optimizer_state_(optimizer, kept)
                for index, h in steps:
                    z, y = uploads[m][index]
                    with torch_seeded(server_dropout_seed(seed, round, m, h)):
                        value = self.loss(replica(z.detach().requires_grad_(True)), y)
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                states.append(trainable_parameters(replica))
                moments.append(optimizer_state(optimizer))
            shares = sample_weights([num_samples[m] for m in uploads])
            start = trainable_parameters(self.model)
            load_parameters_(self.model, aggregate(states, shares, start, config.robust))
            self.moments = weighted_mean(moments, shares)
            return

        self.model.train()
        optimizer = build_optimizer(config.server_optimizer, self.model.parameters())
        assert optimizer is not None
        load_optimizer_state_(optimizer, kept)
        if config.server_mode == "summed":
            turns = [(list(uploads), index, h) for index, h in steps]
        elif config.client_order == "sequential":
            turns = [([m], index, h) for m in order for index, h in steps]
        else:
            turns = [([m], index, h) for index, h in steps for m in order]
        for served, index, h in turns:
            # One step on the sum of the served clients' mean losses.
            z = join([uploads[m][index][0] for m in served]).detach().requires_grad_(True)
            sizes = [len(uploads[m][index][1]) for m in served]
            is_one = config.server_mode == "sequential"
            dropout = (
                server_dropout_seed(seed, round, served[0], h)
                if is_one
                else server_dropout_seed(seed, round, local_step=h)
            )
            with torch_seeded(dropout):
                outputs = self.model(z).split(sizes)
                losses = [
                    self.loss(o, uploads[m][index][1]) for o, m in zip(outputs, served, strict=True)
                ]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.moments = optimizer_state(optimizer)
