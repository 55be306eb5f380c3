"""FedAvg's client half: ordinary training of the whole model, in Flower's own message format."""

from __future__ import annotations

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from leansplit.clients.attacks import attack_of, corrupted_tensors
from leansplit.clients.session import Session
from leansplit.federated import (
    FedAvgConfig,
    build_optimizer,
    load_optimizer_state_,
    optimizer_state,
)
from leansplit.first_order import local_step
from leansplit.noise import client_dropout_seed
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.strategies.flower_records import METRICS, NUM_SAMPLES, TRAIN_LOSS

_MOMENTS = "moments"


def round_of(content: RecordDict) -> int:
    """Return the round that a request belongs to."""
    config = next(iter(content.config_records.values()))
    return int(str(config["server-round"]))


def answer(session: Session, content: RecordDict) -> RecordDict:
    """Return what goes up: what the client trained, or what a hostile client makes of it."""
    trained = train(session, content)
    attack = attack_of(session.plan, session.client_id)
    if attack is None or attack.kind == "label_flip":
        return trained
    start = next(iter(content.array_records.values())).to_torch_state_dict()
    honest = trained.array_records["arrays"].to_torch_state_dict()
    wrong = corrupted_tensors(session, attack, round_of(content), honest, start)
    trained["arrays"] = ArrayRecord(wrong)
    return trained


def train(session: Session, content: RecordDict) -> RecordDict:
    """Train the model sent for ``local_steps`` batches and send it back."""
    arrays = next(iter(content.array_records.values()))
    round = round_of(content)
    method = session.config(FedAvgConfig)
    model = session.worker.workload.model.full_model
    load_parameters_(model, arrays.to_torch_state_dict())
    optimizer = build_optimizer(method.client_optimizer, model.parameters())
    if method.client_optimizer.outlives_round:
        load_optimizer_state_(optimizer, session.memory.load(_MOMENTS) or {})
    num_samples, loss_sum = 0, 0.0
    for h in range(method.local_steps):
        inputs, labels = session.batch(round, h)
        loss = local_step(
            model,
            session.loss,
            optimizer,
            inputs,
            labels,
            dropout_seed=client_dropout_seed(method.root_seed, round, session.client_id, h),
        )
        num_samples += len(labels)
        loss_sum += loss * len(labels)
    if method.client_optimizer.outlives_round:
        session.memory.save(_MOMENTS, optimizer_state(optimizer))
    return RecordDict(
        {
            "arrays": ArrayRecord(dict(trainable_parameters(model))),
            METRICS: MetricRecord({NUM_SAMPLES: num_samples, TRAIN_LOSS: loss_sum / num_samples}),
        }
    )
