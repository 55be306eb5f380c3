"""CSE-FSL as one plain loop (arXiv 2507.15816): documentation and oracle.

Clients train client model and auxiliary head by backpropagation on their own loss; the server
trains on the batches they upload and sends no gradient back.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from leansplit.federated import (
    ClientData,
    CSEFSLConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import client_dropout_seed, torch_seeded
from leansplit.parameters import ParameterDict, trainable_parameters
from leansplit.reference.auxiliary import Server, Upload, average_, samples_of, with_head
from leansplit.reference.rounds import AfterRound, cohorts, go_on


def cse_fsl(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: CSEFSLConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> ParameterDict:
    """Train ``model`` in place; arguments as in :func:`ho_sfl`.

    Returns:
        theta_c and theta_a as the server holds them at the end.
    """
    seed = config.root_seed
    local = with_head(model, clients, config)
    trained_part = local.head_alone() if config.frozen_client else local
    released = partial(config.released_smashed_data, has_mask=model.has_mask)
    server = Server(model, loss, config)
    client_moments: dict[int, dict[str, Tensor]] = {}

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        trained: dict[int, ParameterDict] = {}
        uploads: dict[int, list[Upload]] = {}
        for m in cohort:
            # 1. Download theta_c and theta_a.
            mine = copy.deepcopy(trained_part).train()
            optimizer = build_optimizer(config.client_optimizer, mine.parameters())
            assert optimizer is not None
            if config.client_optimizer.outlives_round:
                load_optimizer_state_(optimizer, client_moments.get(m, {}))
            uploads[m] = []
            for h in range(config.local_steps):
                # 2. Forward through client model and head, backward through both, step.
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                if config.frozen_client:  # a constant: the head is trained on z
                    with torch.no_grad():
                        x = local.client.eval()(x)
                with torch_seeded(client_dropout_seed(seed, t, m, h)):
                    z = mine.client(x)
                    value = loss(mine.auxiliary(z), y)
                # 3. Every k-th step z and y go up, as they were before the update.
                if h % config.upload_period == 0:
                    uploads[m].append((released(z.detach(), t, m, len(uploads[m])), y))
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            client_moments[m] = optimizer_state(optimizer)
            trained[m] = trainable_parameters(mine)
        # 4. The server steps on the uploads; theta_c and theta_a are averaged.
        num_samples = samples_of(clients, cohort, config, t)
        server.train(t, uploads, num_samples)
        average_(local, trained, num_samples, config)
    return trainable_parameters(local)
