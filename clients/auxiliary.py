"""What the clients of CSE-FSL, HERON-SFL and FSL-SAGE share: client model and auxiliary head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leansplit.clients.session import Session
from leansplit.federated import (
    AuxiliaryMethodConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.models import LocalModel, build_auxiliary
from leansplit.noise import auxiliary_seed
from leansplit.parameters import ParameterDict, to_send
from leansplit.telling import leave_out
from leansplit.wire import LocalTrainReply, LocalTrainRequest

_MOMENTS = "moments"


def local_model(session: Session, request: LocalTrainRequest) -> LocalModel:
    """Return client model and head of this process; their trained weights come with requests.

    The head's structure follows from the plan, the workload's model and one batch.

    Raises:
        ValueError: if what is never trained of the head differs from the server's.
    """
    worker = session.worker
    if worker.local_model is None:
        config = session.config(AuxiliaryMethodConfig)
        model = worker.workload.model
        batch = session.data.inputs[: config.batch_size]
        shape = tuple(worker.smashed_data_of_none(batch).shape[1:])
        seed = auxiliary_seed(config.root_seed)
        head = build_auxiliary(config.auxiliary, model, shape, seed=seed)
        worker.local_model = LocalModel(model.client_model, head)
    if worker.local_model.auxiliary_checksum != request.auxiliary_checksum:
        raise ValueError(
            "the auxiliary head's frozen parameters or buffers differ from the server's; load the "
            "same checkpoint on both sides"
        )
    return worker.local_model


def kept_weights(session: Session, weights: ParameterDict, part: str) -> ParameterDict:
    """Return the weights of ``part`` that serve until others are sent.

    Args:
        session: this client's.
        weights: those of the request, with or without the part's.
        part: ``client`` or ``auxiliary``, the beginning of their names.

    Raises:
        ValueError: if this client was never sent any, or has lost them.
    """
    sent = {name: value for name, value in weights.items() if name.startswith(f"{part}.")}
    if sent:
        session.memory.save(part, sent)
    kept = session.memory.load(part)
    if kept is None:
        raise ValueError(f"this client holds no {part} weights and was sent none")
    return kept


def round_optimizer(session: Session, parameters: Sequence[Tensor]) -> torch.optim.Optimizer | None:
    """Return the client's optimizer, with the moments it kept if they live for the run."""
    config = session.config(AuxiliaryMethodConfig).client_optimizer
    optimizer = build_optimizer(config, parameters)
    if config.outlives_round:
        load_optimizer_state_(optimizer, session.memory.load(_MOMENTS) or {})
    return optimizer


def keep_moments(session: Session, optimizer: torch.optim.Optimizer | None) -> None:
    """Remember the moments if they live for the run."""
    if session.config(AuxiliaryMethodConfig).client_optimizer.outlives_round:
        session.memory.save(_MOMENTS, optimizer_state(optimizer))


@dataclass
class Uploads:
    """The batches of a round that go up, and the count of all samples."""

    session: Session
    num_samples: int = 0
    smashed_data: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, local_step: int, smashed_data: Tensor | None, labels: Tensor) -> None:
        """Count a step's samples, and keep its batch if it is one to upload."""
        self.num_samples += len(labels)
        if local_step in self.session.config(AuxiliaryMethodConfig).upload_steps:
            assert smashed_data is not None
            leave_out([smashed_data])  # a device sends it before it goes on
            self.smashed_data.append(smashed_data)
            self.labels.append(labels)

    def reply(self, weights: ParameterDict) -> LocalTrainReply:
        """Return the answer to the round's one request."""
        return LocalTrainReply(
            weights=to_send(weights),
            smashed_data={str(u): z for u, z in enumerate(self.smashed_data)},
            labels={str(u): y for u, y in enumerate(self.labels)},
            num_samples=self.num_samples,
        )
