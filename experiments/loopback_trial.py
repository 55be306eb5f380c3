"""What a trial on real processes runs, and the same run simulated (docs/deployment.md)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from flwr.app import Message

from leansplit.clients.app import OWN_DATA, task_client_app
from leansplit.errors import UserError, require_choice
from leansplit.experiments.launch import quiet
from leansplit.server_app.config import run_config
from leansplit.server_app.execution import execute
from leansplit.server_app.recording import Outcome
from leansplit.strategies.in_process_grid import Fault, InProcessGrid
from leansplit.tasks import Examples

METHOD = "ho-sfl"
End = Literal["", "term", "kill"]
ENDS = ("", "term", "kill")
"""How a process is ended: not at all, by SIGTERM, by SIGKILL."""
FIRST_ANSWER = "smashed_data"
"""Kind of the bytes that open a client's round in the ledger."""
_ACTION, _PROBE = "train.ho_sfl_", "train.ho_sfl_probe"
_IMAGES = 100  # of each SuperNode with data of its own


@dataclass(frozen=True)
class Trial:
    """What is to be shown.

    Attributes:
        folder: new, absolute; for everything that is written.
        tls: with certificates and authenticated SuperNodes; one that is not registered is refused.
        nodes: SuperNodes.
        rounds: of the run.
        restart: how the last SuperNode is ended after round 1, to be started again.
        resume: how the ServerApp is ended once it has left a checkpoint, to go on from it.
        probe_ahead: one exchange a round in place of two.
        own_data: whether every SuperNode trains on files of its own.
        timeout_s: the longest that all of it may take.
    """

    folder: Path
    tls: bool = False
    nodes: int = 2
    rounds: int = 3
    restart: End = ""
    resume: End = ""
    probe_ahead: bool = False
    own_data: bool = False
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        require_choice("restart", self.restart, ENDS)
        require_choice("resume", self.resume, ENDS)
        if self.nodes < 1 or self.rounds < 1:
            raise UserError(
                f"nodes and rounds must be at least 1, got {self.nodes} and {self.rounds}"
            )
        if self.restart and self.resume:
            raise UserError("show one at a time: restart, or resume")
        if self.restart and not self.tls:
            raise UserError(
                "restart needs tls: only an authenticated SuperNode comes back as the same one"
            )
        if (self.restart or self.resume) and self.rounds < 3:
            raise UserError(f"restart and resume need at least 3 rounds, got {self.rounds}")

    def settings(self) -> dict[str, int | float | str | bool]:
        """Return the run's keys."""
        own = {"task_options.data_path": str(self.data_folder("server"))} if self.own_data else {}
        return {
            "task": "images" if self.own_data else "digits",
            "model": "digits-cnn",
            "clients": self.nodes,
            "cohort": self.nodes,
            "rounds": self.rounds,
            "evaluate_every": self.rounds,
            "exchange_timeout_s": 300.0,
            **({"checkpoint_every": 1} if self.resume else {}),
            **({"probe_ahead": True} if self.probe_ahead else {}),
            **own,
        }

    def data_folder(self, name: str) -> Path:
        """Return where the files of a SuperNode, or of the server, are."""
        return self.folder / "data" / name

    def node_config(self, node: int) -> dict[str, int | str]:
        """Return what a SuperNode is started with."""
        own = {OWN_DATA: str(self.data_folder(node_name(node)))} if self.own_data else {}
        return {"partition-id": node, "num-partitions": self.nodes, **own}


def node_name(node: int) -> str:
    """Return what a SuperNode is called in logs and folders."""
    return f"node-{node}"


def simulate(trial: Trial, away: Fault | None = None, **changed: Any) -> Outcome:
    """Return the outcome of the same run in this process.

    Args:
        trial: what is run.
        away: whose answers stay out.
        changed: keys of the run that differ.
    """
    settings = {**trial.settings(), "checkpoint_every": 0, **changed}
    nodes = {node: trial.node_config(node) for node in range(trial.nodes)}
    with quiet():
        grid = InProcessGrid(task_client_app(), trial.nodes, fault=away, node_configs=nodes)
        return execute(run_config(METHOD, settings), grid)


def away_as_in(ledger: pd.DataFrame) -> Fault:
    """Return the faults by which the clients of another run are heard as in this ledger."""
    up = ledger[ledger["direction"] == "uplink"]
    heard = set(zip(up["round"], up["client_id"], up["kind"], strict=True))

    def away(message: Message, partition_id: int) -> str | None:
        metadata = message.metadata
        if not metadata.message_type.startswith(_ACTION):
            return None
        kind = "scalars" if metadata.message_type == _PROBE else FIRST_ANSWER
        is_heard = (int(metadata.group_id), partition_id, kind) in heard
        return None if is_heard else "it was not heard of there"

    return away


def write_data(trial: Trial) -> None:
    """Write digits as images: a share for each SuperNode, and other ones for the server."""
    from leansplit.tasks import load_task

    task = load_task("digits")
    for part, name in enumerate(["server", *map(node_name, range(trial.nodes))]):
        folder = trial.data_folder(name)
        _write_images(
            folder, task.train.select(range(part * _IMAGES, (part + 1) * _IMAGES)), "train"
        )
        _write_images(folder, task.test.select(range(_IMAGES if name == "server" else 1)), "test")


def _write_images(folder: Path, examples: Examples, which: str) -> None:
    from PIL import Image

    pixels = examples.inputs[:, 0]
    low, high = float(pixels.min()), float(pixels.max())
    grey = ((pixels - low) / (high - low) * 255).round().numpy().astype(np.uint8)
    encoded = [io.BytesIO() for _ in grey]
    for picture, file in zip(grey, encoded, strict=True):
        Image.fromarray(picture).save(file, "PNG")
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"image": [f.getvalue() for f in encoded], "label": examples.labels.tolist()}
    pd.DataFrame(columns).to_parquet(folder / f"{which}.parquet")


def flower_keys(trial: Trial, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's keys as ``flwr run`` takes them: those it does not list go into ``set``.

    Args:
        trial: what is run.
        flat: the keys that the Flower app lists.
    """
    settings = {"method": METHOD, **trial.settings()}
    listed = {key: value for key, value in settings.items() if key in flat}
    others = [f"{key}={value}" for key, value in settings.items() if key not in flat]
    return {**listed, "set": "; ".join(others)}
