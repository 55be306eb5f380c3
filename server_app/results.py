"""What a run leaves behind: one folder with `result.json`, `rounds.parquet` and `ledger.parquet`.

`result.json` says what was run, on what, and how it ended; `rounds.parquet` has one row per
evaluation; `ledger.parquet` one row per priced record. Accuracies are fractions in [0, 1], sizes
are bytes, times are seconds. Files are replaced whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple
from dataclasses import dataclass as plain_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from leansplit.errors import UserError
from leansplit.server_app.budget import ROUNDING, EndedBy
from leansplit.server_app.cost_figures import CostFigures

if TYPE_CHECKING:
    from leansplit.wire.ledger import Ledger, LedgerEntry

Status = Literal["completed", "interrupted", "failed"]
Engine = Literal["flower", "plain"]

SCHEMA_VERSION: Literal[1] = 1
RESULT_FILE = "result.json"
ROUNDS_FILE = "rounds.parquet"
LEDGER_FILE = "ledger.parquet"
CHECKPOINT_KEYS = ("checkpoint_every", "checkpoint_seconds", "checkpoint_keep")

ROUNDS_COLUMNS: dict[str, str] = {
    "round": "int64",
    "samples_seen": "int64",
    "accuracy": "float64",
    "loss": "float64",
    "train_loss": "float64",
    "uplink_bytes": "int64",
    "downlink_bytes": "int64",
    "num_exchanges": "int64",
    "wall_time_s": "float64",
}
LEDGER_COLUMNS: dict[str, str] = {
    "round": "int64",
    "client_id": "int64",
    "direction": "str",
    "kind": "str",
    "bytes": "int64",
}


def to_plain(value: object) -> Any:
    """Return a copy of ``value`` made of JSON types only, the same for equal inputs.

    Non-finite floats become the strings "nan", "inf" and "-inf": JSON has no such numbers.

    Raises:
        TypeError: for a type with no obvious JSON form, or two keys with the same text.
    """
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        plain = {str(key): to_plain(item) for key, item in value.items()}
        if len(plain) != len(value):
            raise TypeError(f"keys are the same once written as text: {list(value)!r}")
        return plain
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot store {type(value).__name__} in {RESULT_FILE}: {value!r}")


def _unwrap_numpy(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


Count = Annotated[int, BeforeValidator(_unwrap_numpy), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_unwrap_numpy), Field(ge=0, le=1)]
Number = Annotated[float, BeforeValidator(_unwrap_numpy)]
PlainDict = Annotated[dict[str, Any], BeforeValidator(to_plain)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OrderBoundary:
    """The clients that pass from zeroth to first order at the same place of the model."""

    boundary: str  # name of a layer, "none", "cut" or "all"
    zeroth_order_parameters: Count  # trained by zeroth-order steps below it
    clients: list[Count]  # their ids
    step_flops: Count | None = None  # one of them, one step
    peak_memory_bytes: Count | None = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RunResult:
    """The content of `result.json`: what was run, on what, and how it ended."""

    schema_version: Literal[1] = SCHEMA_VERSION
    method: str  # registry name, e.g. "ho-sfl"
    label: str  # display name; runs that share it are seeds of one table row
    task: str
    status: Status
    ended_by: EndedBy | None = None  # None: written before budgets were recorded
    error: str | None = None
    engine: Engine = "flower"  # plain: the method's plain loop, no messages
    device: str = "cpu"  # where it was computed
    placement: dict[str, Count] = Field(default_factory=dict)  # clients_per_node, ray_workers, ...
    config: PlainDict
    config_hash: str  # config_hash(config)
    root_seed: Count
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None  # ends in "+dirty" if the checkout had changes
    hardware: PlainDict = Field(default_factory=dict)
    command: list[str] = Field(default_factory=list)
    started_at: str  # ISO 8601, UTC
    wall_time_s: Annotated[Number, Field(ge=0)] = 0.0
    rounds_completed: Count = 0
    samples_seen: Count = 0  # training samples, summed over clients
    final_accuracy: Fraction | None = None
    best_accuracy: Fraction | None = None
    final_loss: Number | None = None
    # the task's other metrics, of the final model
    measures: dict[str, Number] = Field(default_factory=dict)
    local_accuracy: Fraction | None = None  # client model and auxiliary head, without the server
    num_exchanges: Count = 0  # round trips on the critical path
    # kind of record -> {"uplink_bytes": ..., "downlink_bytes": ...}; see Ledger.by_kind
    traffic: dict[str, dict[str, Count]] = Field(default_factory=dict)
    uplink_bytes: Count = 0
    downlink_bytes: Count = 0
    client_forwards: Count = 0  # counted per sample: a batch of 32 run once is 32
    client_backwards: Count = 0  # counted per sample, as above
    client_step_flops: Count | None = None  # one client, one step
    client_peak_memory_bytes: Count | None = None
    predicted: CostFigures = Field(default_factory=CostFigures)  # of the step that was measured
    measured: CostFigures = Field(default_factory=CostFigures)  # where it is computed
    measured_by: str = ""  # who measured the step, and when
    # passes that messages, which hold no graph, make a client run twice; not in client_step_flops
    repeated_step_flops: Count | None = None
    # HO-FL, smallest zeroth-order segment first; see OrderBoundary
    order_boundaries: list[OrderBoundary] = Field(default_factory=list)
    client_samples: list[Count] = Field(default_factory=list)  # held by client 0, 1, ...
    excluded_clients: list[Count] = Field(default_factory=list)  # memory too small for a step
    # on the devices of simulated_on; see leansplit.server_app.simulated_time
    simulated_on: str = ""
    unfit_clients: list[Count] | None = None  # memory too small for a step; None without devices
    simulated_s: Number | None = None
    client_s: Number | None = None
    final_model_checksum: str | None = None
    events: dict[str, Count] = Field(default_factory=dict)  # dropped_clients, resyncs, ...
    partition: PlainDict = Field(default_factory=dict)  # sizes, label_counts, ...
    telemetry: PlainDict = Field(default_factory=dict)  # see leansplit.server_app.telemetry
    privacy: PlainDict = Field(default_factory=dict)  # see leansplit.server_app.privacy_spent
    notes: list[str] = Field(default_factory=list)


@plain_dataclass(frozen=True, kw_only=True)
class Run:
    """A run read back from its folder."""

    result: RunResult
    # ROUNDS_COLUMNS, one row per evaluation; bytes, simulated_s and client_s are cumulative
    rounds: pd.DataFrame
    ledger: pd.DataFrame  # LEDGER_COLUMNS, one row per priced record
    path: Path | None = None

    def first_crossing(self, target_accuracy: float) -> tuple[int, int] | None:
        """Return (samples seen, bytes both ways) at the first evaluation at or above the target."""
        reached = self.rounds[self.rounds["accuracy"] >= target_accuracy - ROUNDING]
        if reached.empty:
            return None
        first = reached.sort_values("samples_seen").iloc[0]
        return int(first["samples_seen"]), int(first["uplink_bytes"] + first["downlink_bytes"])


_RESULT_ADAPTER: TypeAdapter[RunResult] = TypeAdapter(RunResult)


def config_hash(config: Mapping[str, object]) -> str:
    """Return 16 hexadecimal digits that identify ``config``, whatever the order of its keys.

    When checkpoints are written (``CHECKPOINT_KEYS``) does not count: it is the same run.
    """
    decisive = {key: value for key, value in config.items() if key not in CHECKPOINT_KEYS}
    text = json.dumps(
        to_plain(decisive),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def utc_now() -> str:
    """Return the present time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def rounds_table(rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """Return evaluations (mappings with the keys of ROUNDS_COLUMNS) as a typed table.

    Other keys are the task's further metrics: columns of float64.
    """
    return typed_table(pd.DataFrame([dict(row) for row in rows]), ROUNDS_COLUMNS, others="float64")


def ledger_table(entries: Ledger | Iterable[LedgerEntry]) -> pd.DataFrame:
    """Return a ledger, or some entries in their order, as a typed table with LEDGER_COLUMNS."""
    own = getattr(entries, "columns", None)  # one object for each of millions would be too many
    columns = own() if own else zip(*map(astuple, entries), strict=True)
    table = pd.DataFrame(dict(zip(LEDGER_COLUMNS, columns, strict=False)))  # none of no entries
    return typed_table(table, LEDGER_COLUMNS)


@contextmanager
def results_folder(out_dir: Path) -> Iterator[None]:
    """Make a folder that what happens inside the block is to write to.

    If that ends with an error and has written nothing, the folder is as if it had never been made,
    and so are those above it: a command that is refused leaves nothing behind.

    Raises:
        UserError: as :func:`check_writable`.
    """
    made = [folder for folder in (out_dir, *out_dir.parents) if not os.path.lexists(folder)]
    try:
        check_writable(out_dir)
        yield
    except BaseException:
        with suppress(OSError):  # the first that holds something, and all above it, stay
            for folder in made:
                folder.rmdir()
        raise


def check_writable(out_dir: Path) -> None:
    """Create ``out_dir`` if needed and prove that files can be written there.

    To be called before a run starts: hours of work must not end at a full or read-only disk.

    Raises:
        UserError: naming the folder and the reason.
    """
    probe = out_dir / f".writable-{uuid.uuid4().hex}.tmp"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {out_dir}: {error.strerror or error}; "
            "choose another one"
        ) from error


def write_files(out_dir: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files in ``out_dir`` atomically: all are staged before the first is replaced.

    Args:
        out_dir: created if needed.
        contents: file name to content, replaced in this order.

    Raises:
        UserError: if the disk refuses; the old files are then still there.
    """
    check_writable(out_dir)
    # Not tempfile: its files are readable by their owner only, and results are shared.
    staged = {name: out_dir / f".{name}-{uuid.uuid4().hex}.tmp" for name in contents}
    try:
        for name, temporary in staged.items():
            with temporary.open("xb") as stream:
                stream.write(contents[name])
                stream.flush()
                os.fsync(stream.fileno())
        for name, temporary in staged.items():
            os.replace(temporary, out_dir / name)  # noqa: PTH105  (the atomic call, by its name)
    except OSError as error:
        raise UserError(
            f"cannot write {', '.join(contents)} to {out_dir}: {error.strerror or error}"
        ) from error
    finally:
        for temporary in staged.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_run(out_dir: Path, result: RunResult, rounds: pd.DataFrame, ledger: pd.DataFrame) -> None:
    """Write what a run leaves behind; `result.json` last, so that where it is, all is.

    Raises:
        ValueError: if a table lacks a column or has one too many (a mistake of the caller).
        UserError: if the folder cannot be written.
    """
    text = json.dumps(to_plain(asdict(result)), indent=2, ensure_ascii=False, allow_nan=False)
    contents = {
        LEDGER_FILE: parquet_bytes(typed_table(ledger, LEDGER_COLUMNS)),
        ROUNDS_FILE: parquet_bytes(typed_table(rounds, ROUNDS_COLUMNS, others="float64")),
        RESULT_FILE: (text + "\n").encode("utf-8", "backslashreplace"),
    }
    write_files(out_dir, contents)


def read_run(run_dir: Path) -> Run:
    """Read a run written by :func:`write_run`.

    Raises:
        UserError: if a file is missing, damaged or not ours, naming the file and the reason.
    """
    return Run(
        result=_read_result(run_dir / RESULT_FILE),
        rounds=read_table(run_dir / ROUNDS_FILE, ROUNDS_COLUMNS, others="float64"),
        ledger=read_table(run_dir / LEDGER_FILE, LEDGER_COLUMNS),
        path=run_dir,
    )


def find_runs(root: Path) -> list[Path]:
    """Return every folder at or below ``root`` that holds a `result.json`, sorted.

    Raises:
        UserError: if ``root`` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; give the output folder of a run or of a comparison")
    return sorted(path.parent for path in root.rglob(RESULT_FILE))


def typed_table(
    table: pd.DataFrame, columns: Mapping[str, str], others: str | None = None
) -> pd.DataFrame:
    """Return ``table`` with these columns and types, and any others only if they have a type.

    Raises:
        ValueError: if columns are missing, or there are others and there should be none.
    """
    if table.columns.empty:  # pandas names no columns for a list of no rows
        table = pd.DataFrame(columns=list(columns))
    missing = [name for name in columns if name not in table.columns]
    unexpected = [name for name in table.columns if name not in columns]
    if missing or (unexpected and others is None):
        raise ValueError(f"table columns: missing {missing}, unexpected {unexpected}")
    types: Any = {**columns, **dict.fromkeys(unexpected, others)}
    return table[list(types)].astype(types).reset_index(drop=True)


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """Return the content of a parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def _read_result(path: Path) -> RunResult:
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"cannot read {path}: not valid JSON ({error})") from error
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise UserError(f"cannot read {path}: not a leansplit result (it has no schema_version)")
    if raw["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"cannot read {path}: its schema_version is {raw['schema_version']!r}, this leansplit "
            f"reads {SCHEMA_VERSION}; use the leansplit version that wrote it"
        )
    try:
        return _RESULT_ADAPTER.validate_python(raw)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError(f"cannot read {path}: {'; '.join(problems[:3])}") from error


def read_table(path: Path, columns: Mapping[str, str], others: str | None = None) -> pd.DataFrame:
    """Read a parquet file of ours; UserError if it is missing, damaged or another table."""
    try:
        return typed_table(pd.read_parquet(io.BytesIO(path.read_bytes())), columns, others)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: not such a table ({error})") from error
