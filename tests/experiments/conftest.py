"""Results made by hand, on disk and in memory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from leansplit.experiments import cli
from leansplit.server_app.config import run_config
from leansplit.server_app.results import (
    Run,
    RunResult,
    config_hash,
    ledger_table,
    read_run,
    rounds_table,
    to_plain,
    write_run,
)
from leansplit.wire import LedgerEntry

MakeRun = Callable[..., Run]
RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Run ``leansplit`` in this process; returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["leansplit", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run below ``tmp_path`` and read it back."""

    def make(
        method: str,
        seed: int = 0,
        *,
        label: str | None = None,
        accuracy: float = 0.9,
        settings: dict[str, Any] | None = None,
        folder: str | None = None,
        ledger: Iterable[LedgerEntry] = (),
        **changes: Any,
    ) -> Run:
        label = label or method.upper()
        config = to_plain(run_config(method, {**(settings or {}), "seed": seed}).to_dict())
        rows = [
            {
                "round": i,
                "samples_seen": 100 * i,
                "accuracy": accuracy * i / 4,
                "loss": 1.0,
                "train_loss": 1.0,
                "uplink_bytes": 3_000_000 * i,
                "downlink_bytes": 1_000_000 * i,
                "num_exchanges": 2 * i,
                "wall_time_s": 0.5 * i,
            }
            for i in range(5)
        ]
        values: dict[str, Any] = {
            "method": method,
            "label": label,
            "task": "digits",
            "status": "completed",
            "config": config,
            "config_hash": config_hash(config),
            "root_seed": seed,
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "commit": "c" * 40,
            "hardware": {"cpu_model": "Some CPU", "cores": 2, "gpu": None},
            "command": ["leansplit", "compare", "--note", "two words"],
            "started_at": f"2026-01-0{seed + 1}T00:00:00+00:00",
            "wall_time_s": 2.0,
            "rounds_completed": 4,
            "samples_seen": 400,
            "final_accuracy": accuracy,
            "best_accuracy": accuracy,
            "num_exchanges": 8,
            "traffic": {
                "smashed_data": {"uplink_bytes": 12_000_000, "downlink_bytes": 0},
                "weights": {"uplink_bytes": 0, "downlink_bytes": 4_000_000},
            },
            "uplink_bytes": 12_000_000,
            "downlink_bytes": 4_000_000,
            "client_step_flops": 2_500_000_000,
            "client_peak_memory_bytes": 5_000_000,
            "final_model_checksum": "0123456789abcdef",
            "events": {"resyncs": 3},
            "partition": {"label_counts": [[3, 1], [0, 4]]},
        }
        run_dir = (
            tmp_path / "runs" / (folder or f"{method}-{config_hash({'label': label})}/seed-{seed}")
        )
        shutil.rmtree(run_dir, ignore_errors=True)
        result = RunResult(**{**values, **changes})
        write_run(run_dir, result, rounds_table(rows), ledger_table(ledger))
        return read_run(run_dir)

    return make
