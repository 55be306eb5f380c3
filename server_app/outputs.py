"""From what a run measured to what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch

from leansplit.clients.partition import PartitionReport
from leansplit.models import adapter_config_of
from leansplit.server_app.environment import collect_environment
from leansplit.server_app.generation import Written
from leansplit.server_app.methods import METHODS
from leansplit.server_app.privacy_spent import privacy_spent
from leansplit.server_app.recording import Outcome
from leansplit.server_app.results import (
    Engine,
    OrderBoundary,
    Run,
    RunResult,
    config_hash,
    ledger_table,
    parquet_bytes,
    rounds_table,
    write_files,
    write_run,
)
from leansplit.server_app.simulated_time import timed
from leansplit.server_app.telemetry import TELEMETRY_FILE, telemetry_summary, telemetry_table
from leansplit.zeroth_order import JointPassChoice

MODEL_FILE = "model.safetensors"
ADAPTER_FOLDER = "adapter"
TEXTS_FILE = "texts.jsonl"


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
    settings = outcome.settings or config.method_config()
    forwards, backwards = method.client_passes(settings)
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
        placement=asdict(outcome.placement) if outcome.placement else {},
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
        measures=outcome.measures,
        num_exchanges=outcome.num_exchanges,
        traffic=outcome.ledger.by_kind(),
        uplink_bytes=outcome.ledger.total_bytes("uplink"),
        downlink_bytes=outcome.ledger.total_bytes("downlink"),
        client_forwards=round((forwards + outcome.client_replays) * outcome.samples_forwarded),
        client_backwards=round(backwards * outcome.samples_forwarded),
        client_step_flops=costs.flops if costs else None,
        client_peak_memory_bytes=costs.peak_memory_bytes if costs else None,
        predicted=outcome.predicted,
        measured=outcome.measured,
        measured_by=outcome.measured_by,
        repeated_step_flops=outcome.repeated_step_flops,
        order_boundaries=[
            OrderBoundary(
                boundary=group.boundary,
                zeroth_order_parameters=group.num_zeroth_elements,
                clients=list(group.clients),
                step_flops=at.flops if (at := outcome.boundary_costs.get(group.boundary)) else None,
                peak_memory_bytes=at.peak_memory_bytes if at else None,
            )
            for group in outcome.boundaries
        ],
        client_samples=[size for _, size in sorted(outcome.num_samples.items())],
        excluded_clients=sorted(settings.presence.excluded),
        unfit_clients=sorted(settings.presence.excluded) if config.fleet.profile else None,
        final_model_checksum=outcome.final_model_checksum or None,
        events=outcome.events,
        partition=_partition(outcome),
        telemetry=telemetry_summary(outcome.telemetry),
        privacy=privacy_spent(
            outcome.settings,
            outcome.num_samples,
            # A round that was cut short may have been uploaded.
            outcome.rounds_completed + (outcome.status != "completed"),
            averages_weights=method.averages_weights,
            repeated=outcome.repeated_uploads,
            events=outcome.events,
        ),
        notes=[
            note
            for note in (
                outcome.task_notes,
                _ENGINE_NOTES[outcome.engine],
                _joint_passes_note(outcome.joint_passes),
            )
            if note
        ],
    )


def _joint_passes_note(choices: Sequence[JointPassChoice]) -> str:
    """Return which clients' batches were run at once, if any were."""
    fastest: dict[tuple[int, ...], JointPassChoice] = {}
    for choice in choices:  # of several processes, perhaps
        known = fastest.setdefault(choice.shape, choice)
        if choice.speedup > known.speedup:
            fastest[choice.shape] = choice
    if not fastest:
        return ""
    listed = ", ".join(
        f"{choice.joined} of shape {' x '.join(map(str, shape))} "
        f"({choice.speedup:.1f} times as fast)"
        for shape, choice in sorted(fastest.items(), reverse=True)[:3]
    )
    return f"Clients' batches that were run forward at once: up to {listed}."


def write_outcome(
    out_dir: Path, outcome: Outcome, *, command: list[str], started_at: str, label: str = ""
) -> RunResult:
    """Write result, rounds, ledger, telemetry and the final model; return the result.

    Of a language model with adapters, also the adapter in peft's format; what it wrote, if it did.
    """
    result = run_result(outcome, command=command, started_at=started_at, label=label)
    if outcome.language_model is not None:
        _write_adapter(out_dir, outcome)
    if outcome.written is not None:
        write_files(out_dir, {TEXTS_FILE: _texts(outcome.written)})
    if outcome.final_state:
        write_files(out_dir, {MODEL_FILE: safetensors.torch.save(outcome.final_state)})
    if outcome.config.telemetry_every:
        table = telemetry_table(outcome.telemetry)
        write_files(out_dir, {TELEMETRY_FILE: parquet_bytes(table)})
    else:
        (out_dir / TELEMETRY_FILE).unlink(missing_ok=True)  # an earlier run's, in the same folder
    rounds, ledger = rounds_table(outcome.rounds), ledger_table(outcome.ledger)
    run = Run(result=result, rounds=rounds, ledger=ledger)
    if outcome.config.fleet.profile and outcome.engine == "flower":
        run = timed(run, outcome.config.fleet)
    write_run(out_dir, run.result, run.rounds, run.ledger)
    return run.result


def _write_adapter(out_dir: Path, outcome: Outcome) -> None:
    """Write the final adapter, unless weights of the base were trained too."""
    from leansplit.models.language.export import save_adapter

    assert outcome.language_model is not None
    config = adapter_config_of(outcome.config.model_options)
    if config.holds_everything:
        source = str(outcome.config.model_options.get("source", ""))
        save_adapter(outcome.language_model, config, out_dir / ADAPTER_FOLDER, source=source)


def _texts(written: Written) -> bytes:
    """Return what a model wrote as JSON lines."""
    rows = zip(written.prompts, written.texts, written.references, strict=True)
    lines = [
        json.dumps({"prompt": prompt, "written": text, "wanted": wanted}, ensure_ascii=False)
        for prompt, text, wanted in rows
    ]
    return ("\n".join(lines) + "\n").encode()


def _partition(outcome: Outcome) -> dict[str, object]:
    if not any(outcome.label_counts.values()):  # texts to continue have no labels
        return {}
    counts = np.array(list(outcome.label_counts.values()), dtype=np.int64)
    num_unused = outcome.num_train_samples - int(counts.sum())
    return PartitionReport(label_counts=counts, num_unused=num_unused).to_dict()
