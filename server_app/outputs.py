"""From what a run measured to what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch

from leansplit.clients.partition import PartitionReport
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.execution import Engine, Outcome
from leansplit.server_app.methods import METHODS
from leansplit.server_app.results import (
    OrderBoundary,
    RunResult,
    config_hash,
    ledger_table,
    parquet_bytes,
    rounds_table,
    write_files,
    write_run,
)
from leansplit.server_app.telemetry import TELEMETRY_FILE, telemetry_summary, telemetry_table

MODEL_FILE = "model.safetensors"


_ENGINE_NOTES: dict[Engine, str] = {
    "flower": "",
    "plain": "Run by the method's plain loop: nothing crossed. Traffic is that of the closed "
    "formula, without envelopes, and round trips are not counted.",
}


def run_result(
    outcome: Outcome, *, command: list[str], started_at: str, label: str = ""
) -> RunResult:
    """Return the content of ``result.json``; ``label`` is the method's title unless given."""
    config = outcome.config
    method = METHODS[config.method]
    versions, commit, hardware = collect_environment()
    accuracies = [row["accuracy"] for row in outcome.rounds]
    forwards, backwards = method.client_passes(outcome.settings or config.method_config())
    costs = outcome.client_costs
    return RunResult(
        method=config.method,
        label=label or method.title,
        task=config.task,
        status=outcome.status,
        ended_by=outcome.ended_by,
        error=outcome.error,
        engine=outcome.engine,
        device=outcome.device,
        config=config.to_dict(),
        config_hash=config_hash(config.to_dict()),
        root_seed=config.seed,
        versions=versions,
        commit=commit,
        hardware=hardware,
        command=command,
        started_at=started_at,
        wall_time_s=outcome.wall_time_s,
        rounds_completed=outcome.rounds_completed,
        samples_seen=outcome.samples_seen,
        final_accuracy=accuracies[-1] if accuracies else None,
        best_accuracy=max(accuracies, default=None),
        local_accuracy=outcome.local_accuracy,
        final_loss=outcome.rounds[-1]["loss"] if outcome.rounds else None,
        num_exchanges=outcome.num_exchanges,
        traffic=outcome.ledger.by_kind(),
        uplink_bytes=outcome.ledger.total_bytes("uplink"),
        downlink_bytes=outcome.ledger.total_bytes("downlink"),
        client_forwards=round((forwards + outcome.client_replays) * outcome.samples_forwarded),
        client_backwards=round(backwards * outcome.samples_forwarded),
        client_step_flops=costs.flops if costs else None,
        client_peak_memory_bytes=costs.peak_memory_bytes if costs else None,
        order_boundaries=[
            OrderBoundary(
                boundary=group.boundary,
                zeroth_order_parameters=group.num_zeroth_elements,
                clients=list(group.clients),
            )
            for group in outcome.boundaries
        ],
        final_model_checksum=outcome.final_model_checksum or None,
        events=outcome.events,
        partition=_partition(outcome),
        telemetry=telemetry_summary(outcome.telemetry),
        notes=[note for note in (outcome.task_notes, _ENGINE_NOTES[outcome.engine]) if note],
    )


def write_outcome(
    out_dir: Path, outcome: Outcome, *, command: list[str], started_at: str, label: str = ""
) -> RunResult:
    """Write result, rounds, ledger, telemetry and the final model; return the result."""
    result = run_result(outcome, command=command, started_at=started_at, label=label)
    if outcome.final_state:
        write_files(out_dir, {MODEL_FILE: safetensors.torch.save(outcome.final_state)})
    if outcome.config.telemetry_every:
        table = telemetry_table(outcome.telemetry)
        write_files(out_dir, {TELEMETRY_FILE: parquet_bytes(table)})
    else:
        (out_dir / TELEMETRY_FILE).unlink(missing_ok=True)  # an earlier run's, in the same folder
    write_run(out_dir, result, rounds_table(outcome.rounds), ledger_table(outcome.ledger))
    return result


def _partition(outcome: Outcome) -> dict[str, object]:
    if not outcome.label_counts:
        return {}
    counts = np.array(list(outcome.label_counts.values()), dtype=np.int64)
    num_unused = outcome.num_train_samples - int(counts.sum())
    return PartitionReport(label_counts=counts, num_unused=num_unused).to_dict()
