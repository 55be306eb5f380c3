"""What it costs to encode and decode the messages of a HO-SFL round, beside copying their bytes.

python -m leansplit.experiments.benchmarks.messages
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer

from leansplit.server_app.environment import collect_environment
from leansplit.strategies.flower_records import pack, unpack
from leansplit.wire import (
    ForwardRequest,
    ProbeReply,
    ProbeRequest,
    Record,
    SmashedDataReply,
    SyncReply,
    SyncRequest,
    decode,
    encode,
    price,
)

_CHECKSUM = "0" * 16
_SHORTEST_TURN_S = 2e-3  # so many calls make a turn that the clock measures it well


def messages(batch: int, values: int, parameters: int, directions: int) -> dict[str, Record]:
    """Return name -> a message of every kind that a round without faults sends.

    Args:
        batch: B, samples of a client's batch.
        values: of one sample's smashed data.
        parameters: d, that a client which joins is sent.
        directions: P.
    """
    z = torch.arange(batch * values, dtype=torch.float32).view(batch, values)
    seeds = torch.arange(directions, dtype=torch.int64).to(torch.uint32)
    scalars = torch.linspace(-1, 1, directions)
    return {
        "forward request, first": ForwardRequest(
            round=1, weights={"weights": torch.zeros(parameters)}, weights_version=0
        ),
        "forward request": ForwardRequest(
            round=9, target_version=8, base_version=7, known_round=8, scalars=scalars
        ),
        "smashed data": SmashedDataReply(
            smashed_data=z, labels=torch.zeros(batch, dtype=torch.int64), checksum=_CHECKSUM
        ),
        "probe request": ProbeRequest(round=9, target_version=8, smashed_gradient=z, seeds=seeds),
        "probe reply": ProbeReply(scalars=scalars),
        "synchronise": SyncRequest(
            round=10, target_version=9, base_version=8, known_round=9, scalars=scalars
        ),
        "synchronised": SyncReply(version=9, checksum=_CHECKSUM),
    }


def there_and_back(record: Record) -> None:
    """Do all that a message costs between strategy and handler, but for what Flower does."""
    content = pack({0: encode(record)})
    [blob] = unpack(content).values()
    price(blob)
    decode(blob)


def compare(record: Record, repeats: int) -> tuple[int, float, list[float]]:
    """Time a message and a copy of its bytes in turn.

    Returns:
        (bytes, microseconds of the message, its ratios to the copy).
    """
    blob = encode(record)

    def message() -> None:
        there_and_back(record)

    def copy() -> object:
        return bytearray(blob)

    calls = [_calls(message), _calls(copy)]
    seconds = [[_each_s(message, calls[0]), _each_s(copy, calls[1])] for _ in range(repeats)]
    ratios = [ours / theirs for ours, theirs in seconds]
    return len(blob), 1e6 * statistics.median(ours for ours, _ in seconds), ratios


def _calls(call: Callable[[], object]) -> int:
    """Return how many calls make a turn."""
    calls = 1
    while _each_s(call, calls) * calls < _SHORTEST_TURN_S:
        calls *= 2
    return calls


def _each_s(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def main(
    batch: Annotated[int, typer.Option(help="B, samples of a batch.")] = 8,
    values: Annotated[int, typer.Option(help="Smashed data of one sample.")] = 4_096,
    parameters: Annotated[int, typer.Option(help="d, of the client model.")] = 100_000,
    directions: Annotated[int, typer.Option(help="P, directions of a round.")] = 5,
    repeats: Annotated[int, typer.Option(help="Turns of the interleaved run.")] = 25,
) -> None:
    """Print, for every kind of message, the ratio of making and reading it to copying its bytes."""
    torch.set_num_threads(1)
    versions, _, hardware = collect_environment()
    typer.echo(f"{hardware['cpu_model']}, one thread, torch {versions['torch']}")
    typer.echo("encode, pack, unpack, price and decode, to one copy of the bytes")
    for name, record in messages(batch, values, parameters, directions).items():
        num_bytes, each_us, ratios = compare(record, repeats)
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        typer.echo(
            f"  {name}: {num_bytes:,} bytes, {each_us:.0f} us, "
            f"{middle:.1f} (quartiles {low:.1f} to {high:.1f})"
        )


if __name__ == "__main__":
    typer.run(main)
