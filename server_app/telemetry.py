"""Watches the gradient estimates of a simulated run: each against the true gradient.

Where the server can load what its clients hold, as in a simulation, it can rebuild their batches
and differentiate what they only probed. The watcher does so every k rounds and keeps one row for
each estimate. It reads copies, draws nothing, sends nothing and is booked nowhere: the run is the
same, bit for bit and byte for byte, with and without it. Only wall time grows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from leansplit.errors import UserError
from leansplit.federated import ClientData, MethodConfig, take_batch
from leansplit.server_app.results import read_table, typed_table
from leansplit.strategies.federation import Federation
from leansplit.strategies.running import RoundReport
from leansplit.zeroth_order import Batches, EstimateReport, expected_cosine

TELEMETRY_FILE = "telemetry.parquet"
TELEMETRY_COLUMNS: dict[str, str] = {
    "round": "int64",
    "samples_seen": "int64",
    "part": "str",
    "local_step": "int64",
    "num_clients": "int64",
    "num_elements": "int64",
    "num_directions": "int64",
    "cosine": "float64",
    "norm_ratio": "float64",
    "projection": "float64",
    "relative_variance": "float64",
    "true_norm": "float64",
    "expected_cosine": "float64",
    "train_loss": "float64",
}
"""See :class:`leansplit.zeroth_order.EstimateQuality`; ``samples_seen`` includes the round's own,
``expected_cosine`` is what Gaussian directions and a linear probe would have on average."""

_AVERAGED = ("cosine", "norm_ratio", "projection", "relative_variance", "true_norm")


class EstimateWatcher:
    """An observer that measures the estimates of rounds 1, 1 + k, 1 + 2 k, ...

    It measures whatever the strategy reports: one estimate of a cohort that shares directions, one
    of each client that has its own; see docs/telemetry.md for what each method's estimates.

    Args:
        config: the method's settings; batches derive from them.
        client_data: client id -> exactly the samples that the client holds.
        every: k.

    Attributes:
        rows: one for each estimate of a finished round, with the keys of ``TELEMETRY_COLUMNS``.
    """

    def __init__(
        self, config: MethodConfig, client_data: Callable[[int], ClientData], *, every: int
    ) -> None:
        if every < 1:
            raise UserError(f"telemetry is taken every 1 or more rounds, got {every}")
        self.rows: list[dict[str, Any]] = []
        self._config = config
        self._client_data = client_data
        self._every = every
        self._unfinished: list[dict[str, Any]] = []

    def on_set_up(self, federation: Federation) -> None:
        """Start over."""
        self.rows.clear()
        self._unfinished.clear()

    def go_on(self, rows: Iterable[dict[str, Any]]) -> None:
        """Go on where another process ended, with its rows."""
        self.rows[:] = rows

    def wants_estimates(self, round: int) -> bool:
        """Say whether ``round`` is measured."""
        return (round - 1) % self._every == 0

    def batches(self, round: int) -> Batches:
        """Return what gives the clients' batches of ``round``, as the clients drew them."""
        return lambda client_id, local_step: take_batch(
            self._client_data(client_id),
            self._config.root_seed,
            round,
            client_id,
            local_step,
            batch_size=self._config.batch_size,
        )

    def on_estimate(self, report: EstimateReport) -> None:
        """Differentiate what was probed, and compare; nothing, if there is nothing to train."""
        if not report.spec.num_elements:
            return
        quality = report.quality(self.batches(report.round))
        self._unfinished.append(
            {
                "round": report.round,
                "part": report.part,
                "local_step": report.local_step,
                "num_clients": len(report.weights),
                "num_elements": quality.num_elements,
                "num_directions": quality.num_directions,
                "cosine": quality.cosine,
                "norm_ratio": quality.norm_ratio,
                "projection": quality.projection,
                "relative_variance": quality.relative_variance,
                "true_norm": quality.true_norm,
                "expected_cosine": expected_cosine(quality.num_elements, quality.num_directions),
            }
        )

    def on_round(self, report: RoundReport) -> bool:
        """Complete the round's rows; never ends the run."""
        for row in self._unfinished:
            row |= {"samples_seen": report.samples_seen, "train_loss": report.train_loss}
        self.rows += self._unfinished
        self._unfinished = []
        return True


def telemetry_table(rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """Return rows of an :class:`EstimateWatcher` as a typed table."""
    return typed_table(pd.DataFrame([dict(row) for row in rows]), TELEMETRY_COLUMNS)


def read_telemetry(run_dir: Path) -> pd.DataFrame | None:
    """Return a run's telemetry; None if it was off.

    Raises:
        UserError: if the file is damaged or not ours.
    """
    path = run_dir / TELEMETRY_FILE
    return read_table(path, TELEMETRY_COLUMNS) if path.is_file() else None


def telemetry_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return part -> number of estimates, d, P, and means over the estimates.

    Undefined values (a zero gradient, one direction's variance) are left out of their mean; a mean
    of nothing is None.
    """
    summary: dict[str, dict[str, Any]] = {}
    for part in sorted({row["part"] for row in rows}):
        chosen = [row for row in rows if row["part"] == part]
        values: dict[str, Any] = {
            "num_estimates": len(chosen),
            "num_elements": max(row["num_elements"] for row in chosen),
            "num_directions": max(row["num_directions"] for row in chosen),
            "expected_cosine": statistics.fmean(row["expected_cosine"] for row in chosen),
        }
        for name in _AVERAGED:
            defined = [row[name] for row in chosen if isfinite(row[name])]
            values[f"mean_{name}"] = statistics.fmean(defined) if defined else None
        summary[part] = values
    return summary
