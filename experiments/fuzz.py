"""Feed damaged bytes to every decoder: whatever comes, it is read or refused with a reason.

    python -m leansplit.experiments.fuzz --messages 1000000

Valid encodings of every record, of what a client's answer carries beside one, of a plan and of a
checkpoint are damaged at random, from a seed.
Whatever a decoder does other than return or refuse is a crash; a second of computing, a hang.
Others are large and well formed: thousands of tensors without elements, long names, lists and
texts. Of these the memory that reading takes is followed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import resource
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from leansplit.errors import UserError
from leansplit.experiments.fuzz_damage import Random, damaged
from leansplit.federated import HOSFLConfig
from leansplit.noise import derive_seed, numpy_generator
from leansplit.server_app import checkpoint_files
from leansplit.server_app.checkpoint_files import Checkpoint, read_checkpoint, write_checkpoint
from leansplit.strategies.flower_records import (
    CostReport,
    take_choices,
    take_costs,
    with_choices,
    with_costs,
)
from leansplit.strategies.wanted import Wanted
from leansplit.wire import (
    ClientPlan,
    DecodeError,
    Record,
    decode,
    encode,
    forms_of,
    header_limit,
    most_tensors,
    price,
)
from leansplit.wire.form import TensorForm
from leansplit.wire.records import KIND_KEY, MANY_KEY
from leansplit.zeroth_order import JointPassChoice

_HANG_S = 1.0
_CHECKPOINTS_EVERY, _PLANS_EVERY, _NOTES_EVERY, _LARGE_EVERY = 200, 20, 50, 100

_Note = CostReport | JointPassChoice
Decoder = Callable[[bytes, "Report"], None]
"""Decodes bytes and notes the size; raises ``DecodeError`` or ``UserError`` to refuse."""


@dataclass
class Report:
    """What came of it."""

    messages: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    hangs: int = 0
    longest_s: float = 0.0
    largest_bytes: int = 0
    """Of what was decoded from one message."""
    largest_growth: float = 0.0
    """That size over the message's own."""
    most_traced: int = 0
    """Bytes of Python memory that reading one large message took at its peak."""
    traced_growth: float = 0.0
    """The highest ratio of that to the message's own size."""
    memory_growth: int = 0
    """Bytes by which the process's peak memory grew on the way."""

    def note(self, size: int, message: bytes) -> None:
        """Note the size of what was decoded from a message."""
        self.largest_bytes = max(self.largest_bytes, size)
        self.largest_growth = max(self.largest_growth, size / max(1, len(message)))

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        yield f"{self.messages} messages: {self.accepted} read, {self.refused.total()} refused"
        yield f"{self.crashes.total()} crashes, {self.hangs} hangs (longest {self.longest_s:.3f} s)"
        yield (
            f"largest decoded: {self.largest_bytes} bytes, at most {self.largest_growth:.2f} times "
            f"the message; peak memory grew by {self.memory_growth / 1e6:.1f} MB"
        )
        yield (
            f"reading a large message took {self.most_traced / 1e6:.1f} MB at most, "
            f"{self.traced_growth:.1f} times the message"
        )
        for name, times in self.refused.most_common():
            yield f"  refused {times:>9}  {name}"
        for name, times in self.crashes.most_common():
            yield f"  CRASHED {times:>9}  {name}"


def fuzz(messages: int, seed: int = 0) -> Report:
    """Damage and decode ``messages`` messages."""
    report, peak = Report(), _peak_memory()
    random = numpy_generator(derive_seed(seed, "fuzz"))
    records = [_record_decoder(kind, masks) for kind in _record_types() for masks in (False, True)]
    others = [blob for blob, _ in records]
    notes = [_costs_decoder(), _choices_decoder()]
    plan = ClientPlan(
        run_id="r", method="ho-sfl", num_clients=3, config=HOSFLConfig(cohort_size=2)
    ).to_json()
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), _checkpoint())
        files = sorted(path.iterdir())
        for index in range(messages):
            if index % _CHECKPOINTS_EVERY == 0:
                file = files[int(random.integers(len(files)))]
                whole = file.read_bytes()
                _feed(report, damaged(whole, others, random), _checkpoint_decoder(file))
                file.write_bytes(whole)
            elif index % _PLANS_EVERY == 0:
                _feed(report, damaged(plan.encode(), others, random), _decode_plan)
            elif index % _LARGE_EVERY == 1:
                _, decoder = records[int(random.integers(len(records)))]
                _feed_large(report, _large(random), decoder)
            else:
                small = notes if index % _NOTES_EVERY == 2 else records
                blob, decoder = small[int(random.integers(len(small)))]
                _feed(report, damaged(blob, others, random), decoder)
    report.memory_growth = _peak_memory() - peak
    return report


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _feed(report: Report, blob: bytes, decoder: Decoder) -> None:
    report.messages += 1
    started = time.process_time()
    try:
        decoder(blob, report)
    except DecodeError as error:
        report.refused[f"{error.rejection}: {_class_of(error)}"] += 1
    except UserError as error:
        report.refused[_class_of(error)] += 1
    except Exception as error:
        report.crashes[f"{type(error).__name__}: {_class_of(error)}"] += 1
    else:
        report.accepted += 1
    took = time.process_time() - started
    report.longest_s = max(report.longest_s, took)
    report.hangs += took > _HANG_S


def _feed_large(report: Report, blob: bytes, decoder: Decoder) -> None:
    tracemalloc.start()
    try:
        _feed(report, blob, decoder)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    report.most_traced = max(report.most_traced, taken)
    report.traced_growth = max(report.traced_growth, taken / len(blob))


def _class_of(error: Exception) -> str:
    """Return the beginning of what an error says, without what belongs to this one message."""
    text = re.sub(
        r"0x[0-9a-f]+|'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^]]*\]|\S*/\S*|-?\d+", "#", str(error)
    )
    text = re.sub(r"\b[A-Z]\w+(Request|Reply)\b(\.\w+)?", "field", text)
    return re.sub(r"[^\x20-\x7e]+", "#", text)[:60]


# --- what is damaged -----------------------------------------------------------------------------


def _record_types() -> list[type[Record]]:
    return sorted(Record.types.values(), key=lambda kind: kind.__name__)


_HEADER_VALUES: dict[Any, Any] = {
    int: 3, str: "0a", bool: True, float: 0.5, list[int]: [1, 2], dict[str, int]: {"n": 1},
}  # fmt: skip


def _record_decoder(kind: type[Record], has_mask: bool) -> tuple[bytes, Decoder]:
    """Return a valid encoding of a record, and what reads it as a server would."""
    hints, values = get_type_hints(kind), {}
    form: dict[str, TensorForm | dict[str, TensorForm]] = {}
    for item in dataclasses.fields(kind):
        if KIND_KEY not in item.metadata:
            values[item.name] = _HEADER_VALUES[hints[item.name]]
            continue
        tensor = torch.arange(24.0).reshape(2, 2, 3, 2) if has_mask else torch.ones(2, 3)
        tensor = tensor if item.metadata[KIND_KEY] != "seeds" else torch.tensor([1, 2])
        many = {"a": tensor, "b/c": torch.ones(1, 2, 2)}
        values[item.name] = many if item.metadata[MANY_KEY] else tensor
        form[item.name] = forms_of(many) if item.metadata[MANY_KEY] else TensorForm.of(tensor)
    blob = encode(kind(**values), has_mask=has_mask)

    def decoder(damaged: bytes, report: Report) -> None:
        most = most_tensors(form)
        if sum(price(damaged, header_limit(most)).values()) != len(damaged):
            raise AssertionError("a price that is not the message's size")
        report.note(_size_of(decode(damaged, most)), damaged)
        Wanted(kind, lambda _: form).read(0, damaged)

    return blob, decoder


def _size_of(record: Record) -> int:
    tensors: list[Tensor] = []
    for item in dataclasses.fields(record):
        if KIND_KEY in item.metadata:
            value = getattr(record, item.name)
            tensors += value.values() if item.metadata[MANY_KEY] else [value]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _decode_plan(blob: bytes, report: Report) -> None:
    ClientPlan.from_json(blob.decode("utf-8", "replace"))


def _costs_decoder() -> tuple[bytes, Decoder]:
    """Return a client's report of what an answer cost it, and what reads it."""
    report = CostReport(flops=10, repeated_flops=2, peak_memory_bytes=400, batches={0: (8, 3, 2)})
    return _note_decoder(
        with_costs(RecordDict(), report), lambda content: [*filter(None, [take_costs(content)])]
    )


def _choices_decoder() -> tuple[bytes, Decoder]:
    """Return which batches a process runs together, and what reads it."""
    choice = JointPassChoice((8, 1, 8, 8), 4, 2.5)
    return _note_decoder(with_choices(RecordDict(), [choice]), take_choices)


def _note_decoder(
    content: RecordDict, take: Callable[[RecordDict], Sequence[_Note]]
) -> tuple[bytes, Decoder]:
    """Return the JSON in ``content``, and what reads it; that can then be written as a result."""
    ((name, note),) = content.items()
    assert isinstance(note, ConfigRecord)

    def decoder(damaged: bytes, report: Report) -> None:
        text = damaged.decode("utf-8", "replace")
        if not (found := take(RecordDict({name: ConfigRecord({"json": text})}))):
            raise UserError(f"{name} is passed over")
        json.dumps([dataclasses.asdict(part) for part in found], allow_nan=False)

    return str(note["json"]).encode(), decoder


def _checkpoint() -> Checkpoint:
    table = pd.DataFrame({"round": [1, 2], "loss": [0.5, 0.25]})
    tensors = {"strategy/model/w": torch.ones(4, 3), "strategy/model/b": torch.zeros(4)}
    fields = {"strategy": {"model": {}, "round": 2}}
    return Checkpoint(2, {"made_by": "fuzz"}, tensors, fields, {"rounds": table})


def _checkpoint_decoder(file: Path) -> Decoder:
    """Return what reads a checkpoint with the damage, then with digests that agree with it.

    A digest stops nearly all damage, and not one that is done on purpose.
    """

    def decoder(damaged: bytes, report: Report) -> None:
        manifest = file.with_name(checkpoint_files.MANIFEST)
        before = manifest.read_bytes()
        file.write_bytes(damaged)
        try:
            with contextlib.suppress(UserError):
                read_checkpoint(file.parent)
            _sign(manifest, file)
            read_checkpoint(file.parent)
        finally:
            manifest.write_bytes(before)

    return decoder


def _sign(manifest: Path, file: Path) -> None:
    """Have a manifest agree with a file, or with itself, if it can be read at all."""
    try:
        stated = json.loads(manifest.read_bytes())
        stated.pop(checkpoint_files.DIGEST, None)
        if file != manifest:
            content = file.read_bytes()
            digest = checkpoint_files.digest_of(content)
            stated["files"][file.name] = {"bytes": len(content), "blake2b": digest}
        manifest.write_bytes(checkpoint_files.signed(stated))
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return


def _large(random: Random) -> bytes:
    """Return an undamaged record of many parts, or of a few long ones."""
    kind = _record_types()[int(random.integers(len(_record_types())))]
    fields = [item.name for item in dataclasses.fields(kind) if KIND_KEY in item.metadata]
    field_name = fields[int(random.integers(len(fields)))] if fields else "more"
    many, header = int(2 ** random.uniform(8, 16)), {}
    what = int(random.integers(4))
    names = [f"{field_name}/{i}" for i in range(many)] if what == 0 else [field_name]
    shape = [1] * many if what == 1 else [0]
    if what == 2:
        names = [f"{field_name}/{'n' * 8 * many}"]
    if what == 3:
        other = next((f.name for f in dataclasses.fields(kind) if f.name not in fields), "round")
        header = {other: list(range(many)) if random.integers(2) else "x" * 8 * many}
    end = 4 if what == 1 else 0
    entries: dict[str, Any] = {"__metadata__": {kind.__name__: json.dumps(header)}}
    entries |= {n: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]} for n in names}
    text = json.dumps(entries, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def main() -> None:
    """Run it, and end with 1 if anything crashed or hung."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report = fuzz(given.messages, given.seed)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    raise SystemExit(bool(report.crashes or report.hangs))


if __name__ == "__main__":
    main()
