"""FSL-SAGE as one plain loop (arXiv 2505.23182, ICML 2025): documentation and oracle.

Clients train the client model by backpropagation from a gradient that an auxiliary head imitates;
the server trains on the batches they upload, and now and then teaches each client's head.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from leansplit.federated import (
    ClientData,
    FSLSAGEConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
    take_batch,
)
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.noise import alignment_seed, client_dropout_seed, numpy_generator, torch_seeded
from leansplit.parameters import ParameterDict, trainable_parameters
from leansplit.reference.auxiliary import Server, Upload, average_, samples_of, with_head
from leansplit.reference.rounds import AfterRound, cohorts, go_on
from leansplit.sequences import join


def fsl_sage(
    model: SplitModel,
    loss: Loss,
    clients: Sequence[ClientData],
    config: FSLSAGEConfig,
    num_rounds: int,
    after_round: AfterRound = go_on,
) -> dict[int, nn.Module]:
    """Train ``model`` in place; arguments as in :func:`ho_sfl`.

    Returns:
        Client id -> its auxiliary head as last aligned, for the clients that took part.
    """
    seed = config.root_seed
    local = with_head(model, clients, config)
    released = partial(config.released_smashed_data, has_mask=model.has_mask)
    server = Server(model, loss, config)
    heads: dict[int, nn.Module] = {}
    buffers: dict[int, tuple[Tensor, Tensor]] = {}
    aligned_in: dict[int, int] = {}
    client_moments: dict[int, dict[str, Tensor]] = {}
    head_moments: dict[int, dict[str, Tensor]] = {}

    def gradient_at_cut(half: nn.Module, z: Tensor, y: Tensor, *, keep: bool = False) -> Tensor:
        """d(mean loss)/dz, by evaluation-mode layers."""
        z = z.detach().requires_grad_(True)
        # Attention by other kernels than the plain one cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH) if keep else contextlib.nullcontext():
            value = loss(half.eval()(z), y)
        return torch.autograd.grad(value, [z], create_graph=keep)[0]

    for t, cohort in cohorts(config, clients, num_rounds, after_round):
        # 1. Every l rounds a client's head is aligned to the current theta_s and sent down.
        for m in cohort:
            heads.setdefault(m, copy.deepcopy(local.auxiliary))
            is_due = m not in aligned_in or t - aligned_in[m] >= config.alignment.period
            if m not in buffers or not is_due:
                continue
            z_all, y_all = buffers[m]
            targets = len(y_all) * gradient_at_cut(server.model, z_all, y_all)  # per sample
            optimizer = build_optimizer(config.alignment_optimizer, heads[m].parameters())
            assert optimizer is not None
            if config.alignment_optimizer.outlives_round:
                load_optimizer_state_(optimizer, head_moments.get(m, {}))
            for epoch in range(config.alignment.epochs):
                generator = numpy_generator(alignment_seed(seed, t, m, epoch))
                order = torch.from_numpy(generator.permutation(len(y_all)))
                for chosen in torch.split(order, config.alignment.batch_size):
                    z, y = z_all[chosen], y_all[chosen]
                    imitated = len(y) * gradient_at_cut(heads[m], z, y, keep=True)
                    error = (imitated - targets[chosen]).square().sum() / len(y)
                    optimizer.zero_grad(set_to_none=True)
                    error.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            head_moments[m] = optimizer_state(optimizer)
            aligned_in[m] = t

        # 2. Local steps: z.backward(imitated gradient), step on theta_c alone.
        trained: dict[int, ParameterDict] = {}
        uploads: dict[int, list[Upload]] = {}
        for m in cohort:
            mine = copy.deepcopy(local.client).train()
            optimizer = build_optimizer(config.client_optimizer, mine.parameters())
            assert optimizer is not None
            if config.client_optimizer.outlives_round:
                load_optimizer_state_(optimizer, client_moments.get(m, {}))
            uploads[m] = []
            for h in range(config.local_steps):
                x, y = take_batch(clients[m], seed, t, m, h, batch_size=config.batch_size)
                with torch_seeded(client_dropout_seed(seed, t, m, h)):
                    smashed = mine(x)
                if h % config.upload_period == 0:
                    uploads[m].append((released(smashed.detach(), t, m, len(uploads[m])), y))
                gradient = gradient_at_cut(heads[m], smashed, y)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward([smashed], [gradient])
                optimizer.step()
            client_moments[m] = optimizer_state(optimizer)
            trained[m] = {f"client.{k}": v for k, v in trainable_parameters(mine).items()}

        # 3. The server steps on the uploads and keeps the newest; theta_c is averaged.
        num_samples = samples_of(clients, cohort, config, t)
        server.train(t, uploads, num_samples)
        for m in cohort:
            old = [buffers[m]] if m in buffers else []
            z_all = join([z for z, _ in (*old, *uploads[m])])
            y_all = join([y for _, y in (*old, *uploads[m])])
            newest = config.alignment.max_samples
            buffers[m] = z_all[-newest:], y_all[-newest:]
        average_(local, trained, num_samples, config)
    return heads
