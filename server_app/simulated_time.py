"""How long a finished run would have taken on given devices: a function of its results alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from leansplit.costs.clock import Elapsed, Participation, round_time
from leansplit.costs.fleet import FleetConfig
from leansplit.errors import UserError, require_choice
from leansplit.server_app.methods import METHODS
from leansplit.server_app.results import Run, RunResult

_SETUP_ROUND = 0


def timed(run: Run, fleet: FleetConfig) -> Run:
    """Return a run with the time that it would have taken on the devices of ``fleet``.

    Who took part stays as it was: the ledger says it. The times are those of :mod:`costs.clock`;
    the set-up is a round before the first, and what comes after the last, such as HO-SFL's final
    update, one after it. A client that did not answer counts as if it had.

    Returns:
        The run; its result has ``simulated_s`` and ``client_s``, and so has each evaluation, up to
        and including its round. ``unfit_clients`` are those whose memory is too small.

    Raises:
        UserError: if the results do not say enough, or the fleet is one of other clients.
    """
    elapsed = _elapsed(run, fleet)
    rounds = np.asarray(sorted(elapsed))
    totals = np.cumsum([(elapsed[t].seconds, elapsed[t].client_seconds) for t in rounds], axis=0)
    totals = np.concatenate([np.zeros((1, 2)), totals.reshape(-1, 2)])
    last = np.searchsorted(rounds, run.rounds["round"].to_numpy(), side="right")
    return dataclasses.replace(
        run,
        result=dataclasses.replace(
            run.result,
            simulated_on=str(fleet),
            unfit_clients=_unfit(run.result, fleet),
            simulated_s=float(totals[-1, 0]),
            client_s=float(totals[-1, 1]),
        ),
        rounds=run.rounds.assign(simulated_s=totals[last, 0], client_s=totals[last, 1]),
    )


def _unfit(result: RunResult, fleet: FleetConfig) -> list[int]:
    """Return the clients that have too little memory for a step."""
    peaks = _by_client(result, "peak_memory_bytes", result.client_peak_memory_bytes)
    devices = fleet.devices(len(peaks), result.root_seed)
    pairs = enumerate(zip(devices, peaks, strict=True))
    return [m for m, (device, peak) in pairs if not device.fits(peak)]


def _elapsed(run: Run, fleet: FleetConfig) -> dict[int, Elapsed]:
    """Return what each round took."""
    result = run.result
    if result.engine != "flower" or result.client_step_flops is None:
        raise UserError(
            f"{result.label}, seed {result.root_seed}: no time can be told, as "
            + ("nothing crossed" if result.engine != "flower" else "no client step was measured")
        )
    method = METHODS[require_choice("method", result.method, METHODS)]
    settings = method.recorded_config(result.config)
    flops = _flops_of_rounds(result, settings)
    devices = fleet.devices(len(flops), result.root_seed)
    round_trips = max(1, method.client_round_trips(settings))  # who is there was asked something
    crossed = run.ledger.pivot_table(
        index=["round", "client_id"], columns="direction", values="bytes", aggfunc="sum"
    ).reindex(columns=["uplink", "downlink"])
    work: dict[int, dict[int, Participation]] = {}
    for (t, m), up, down in crossed.fillna(0).itertuples(name=None):
        is_training = _SETUP_ROUND < t <= result.rounds_completed
        work.setdefault(t, {})[m] = Participation(
            flops=flops[m] if is_training else 0.0,
            uplink_bytes=int(up),
            downlink_bytes=int(down),
            round_trips=round_trips if is_training else 1,
        )
    in_turn = method.is_sequential(settings)
    return {
        t: round_time(done, devices, is_sequential=in_turn and 0 < t <= result.rounds_completed)
        for t, done in work.items()
    }


def _flops_of_rounds(result: RunResult, settings: Any) -> list[float]:
    """Return the FLOPs of a participation of client 0, 1, ...: those of its batches' samples."""
    step = _by_client(result, "step_flops", result.client_step_flops)
    size = settings.batch_size
    held = result.client_samples or _sizes(result) or [size] * len(step)
    if getattr(settings, "features_once", False):
        samples: Sequence[int] = held
    else:
        samples = [getattr(settings, "local_steps", 1) * min(size, n) for n in held]
    return [flops * n / size for flops, n in zip(step, samples, strict=True)]


def _sizes(result: RunResult) -> list[int]:
    """Return the samples of client 0, 1, ... as results before ``client_samples`` have them."""
    return [sum(counts) for counts in result.partition.get("label_counts", [])]


def _by_client(result: RunResult, name: str, alike: int | None) -> list[int]:
    """Return what order boundaries say of client 0, 1, ..., and ``alike`` where they do not."""
    values = [alike or 0] * int(result.config["clients"])
    for group in result.order_boundaries:
        of_group = getattr(group, name)
        for m in group.clients if of_group is not None else ():
            values[m] = of_group
    return values
