"""Start a run: Flower's simulation on Ray, or everything in this process."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from flwr.serverapp import Grid

from leansplit.devices import usable_device
from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.ray_cluster import gpu_share, joined, worker_resources
from leansplit.server_app.checkpoints import Checkpoints
from leansplit.server_app.config import RunConfig
from leansplit.server_app.execution import execute
from leansplit.server_app.interruption import stop_on_interrupt
from leansplit.server_app.placement import Placement
from leansplit.server_app.recording import Outcome, Progress

IN_PROCESS = -1
"""Value of ``workers`` that keeps Ray out."""


def launch(
    config: RunConfig,
    *,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Run ``config`` and return what it measured.

    The first Ctrl-C or SIGTERM, or ``stop``, ends the run after its current round or evaluation,
    with everything measured so far; the second aborts. One that comes when no round is left changes
    nothing. ``checkpoints``: where they are written, and the one that the run goes on from.

    Raises:
        UserError: if the configuration does not fit the data, or there is no such
            ``client_device``.
        RunFailedError: if the simulation engine itself stopped.
    """
    stop = stop or threading.Event()
    _require_device(config)
    with stop_on_interrupt(stop):
        if config.workers == IN_PROCESS:
            return _in_process(config, stop, on_progress, checkpoints)
        return _on_ray(config, stop, on_progress, checkpoints)


def _require_device(config: RunConfig) -> None:
    """Refuse a ``client_device`` before anything starts, as far as this machine can tell."""
    name = config.client_device
    if config.workers != IN_PROCESS and name not in ("cpu", "cuda"):
        raise UserError(
            f"client_device must be cpu or cuda on Ray, which says what worker has which GPU, got "
            f"{name!r}; workers = -1 takes any device"
        )
    if config.workers == IN_PROCESS:
        usable_device(name)
    elif name == "cuda" and not config.ray_address and not torch.cuda.is_available():
        # More is found out by the workers: a context here would hold a part of a GPU all run long.
        raise UserError("client_device is cuda, but torch finds no GPU here")


def _in_process(
    config: RunConfig,
    stop: threading.Event,
    on_progress: Callable[[Progress], None] | None,
    checkpoints: Checkpoints | None,
) -> Outcome:
    from leansplit.clients.app import task_client_app
    from leansplit.strategies.in_process_grid import InProcessGrid

    placement = Placement.in_process(config)
    with quiet():
        grid = InProcessGrid(task_client_app(), placement.num_nodes(config.clients))
        return execute(
            config,
            grid,
            stop=stop,
            on_progress=on_progress,
            checkpoints=checkpoints,
            placement=placement,
        )


def _on_ray(
    config: RunConfig,
    stop: threading.Event,
    on_progress: Callable[[Progress], None] | None,
    checkpoints: Checkpoints | None,
) -> Outcome:
    wants_gpus = config.client_device == "cuda"
    with quiet():
        if config.ray_address:
            with joined(config.ray_address, wants_gpus=wants_gpus) as cluster:
                placement = Placement.on_ray(config, cluster.num_workers, cluster.num_nodes)
                backend = {"client_resources": worker_resources(cluster.gpu_share)}
                return _simulate(config, placement, backend, stop, on_progress, checkpoints)
        num_workers = config.workers or available_cores()
        init_args = {
            "address": "local",  # also where this machine belongs to a cluster
            "num_cpus": num_workers,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        placement = Placement.on_ray(config, num_workers)
        share = 0.0
        if wants_gpus:
            init_args["num_gpus"] = num_gpus = torch.cuda.device_count()
            share = gpu_share(num_workers, num_gpus)
        backend = {"init_args": init_args, "client_resources": worker_resources(share)}
        return _simulate(config, placement, backend, stop, on_progress, checkpoints)


def _simulate(
    config: RunConfig,
    placement: Placement,
    backend: dict[str, Any],
    stop: threading.Event,
    on_progress: Callable[[Progress], None] | None,
    checkpoints: Checkpoints | None,
) -> Outcome:
    """Run on Flower's engine, which starts Ray as ``backend`` says unless this process has it."""
    from flwr.simulation import run_simulation

    from leansplit.clients.app import task_client_app
    from leansplit.server_app.app import server_app

    outcomes: list[Outcome] = []
    errors: list[Exception] = []

    def run(run_config: RunConfig, grid: Grid) -> Outcome:
        # Errors are carried out by hand: the engine would wrap and log them.
        outcome = Outcome(run_config, status="failed", ended_by="failed")
        try:
            outcome = execute(
                run_config,
                grid,
                stop=stop,
                on_progress=on_progress,
                checkpoints=checkpoints,
                placement=placement,
            )
            outcomes.append(outcome)
        except Exception as error:
            errors.append(error)
        return outcome

    try:
        run_simulation(
            server_app=server_app(config, run),
            client_app=task_client_app(),
            num_supernodes=placement.num_nodes(config.clients),
            backend_config={"init_args": {}, **backend},
        )
    except Exception as error:
        if not errors and not outcomes:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise RunFailedError(f"the simulation engine stopped: {cause}") from error
    if errors:
        raise errors[0]
    if not outcomes:
        raise RunFailedError("the simulation engine ended without a result")
    return outcomes[0]


def available_cores() -> int:
    """Return the cores that this process may use, which a container may have few of."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Flower's and Ray's own reports inside the block; ours say what matters."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Records of 100,000 tasks, for a dashboard that is not there.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    loggers = [logging.getLogger(name) for name in ("flwr", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
