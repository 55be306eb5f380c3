"""The row of HO-SFL."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from torch import Tensor

from leansplit import reference
from leansplit.costs import (
    CatchUpSizes,
    ClientStep,
    SplitShape,
    Traffic,
    ho_sfl_traffic,
    hosl_traffic,
)
from leansplit.federated import HOSFLConfig, HOSLConfig, ReplicatedConfig, place_type
from leansplit.models import SplitModel
from leansplit.server_app.client_costs import probed_forward_step, zeroth_order_step
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import HOSFL


def client_passes(config: HOSFLConfig | HOSLConfig) -> tuple[float, float]:
    """The anchor z is a forward pass of its own; the forward estimator reuses it."""
    is_forward = config.zeroth_order.estimator == "forward"
    return config.zeroth_order.num_forwards + (0 if is_forward else 1), 0


def catch_up_sizes(config: ReplicatedConfig, num_elements: int) -> CatchUpSizes:
    """Return what clients that missed rounds are sent, of a replica of ``num_elements``."""
    sizes = CatchUpSizes(
        choice=config.catch_up, moment_bytes=config.client_optimizer.kept_bytes(num_elements)
    )
    pool = config.zeroth_order.seed_pool
    return replace(sizes, seed_bytes=place_type(pool).itemsize) if pool else sizes


def probed_traffic(
    config: HOSFLConfig | HOSLConfig,
    shape: SplitShape,
    attendance: Sequence[Set[int]],
    num_samples: int,
) -> Traffic:
    """Return the traffic of clients that upload the smashed data of all their probes."""
    zo, catch_up = config.zeroth_order, catch_up_sizes(config, shape.client_elements)
    per_direction = 1 if zo.estimator == "forward" else 2
    return hosl_traffic(
        shape, attendance, num_samples, zo.num_perturbations, per_direction, catch_up
    )


def _traffic(
    config: HOSFLConfig, shape: SplitShape, attendance: Sequence[Set[int]], num_samples: int
) -> Traffic:
    if config.probe_ahead:
        return probed_traffic(config, shape, attendance, num_samples)
    catch_up = catch_up_sizes(config, shape.client_elements)
    p = config.zeroth_order.num_perturbations
    return ho_sfl_traffic(shape, attendance, num_samples, p, catch_up)


def _client_step(config: HOSFLConfig, model: SplitModel, inputs: Tensor) -> ClientStep:
    if config.probe_ahead:
        return probed_forward_step(model, inputs, config, config.micro_batch)
    return zeroth_order_step(model, inputs, config)


def _round_trips(config: HOSFLConfig, attendance: Sequence[Set[int]]) -> int:
    return (1 if config.probe_ahead else 2) * len(attendance) + 1  # and the final update


HO_SFL = MethodSpec(
    name="ho-sfl",
    title="HO-SFL",
    description="zeroth-order clients against the server's cut gradient; no model sync",
    source="arXiv 2603.14773 (ICML 2026)",
    client_order="zeroth",
    averages_weights=False,
    reports_estimates=True,
    config_type=HOSFLConfig,
    strategy=HOSFL,
    reference=reference.ho_sfl,
    client_passes=client_passes,
    traffic=_traffic,
    round_trips=_round_trips,
    client_step=lambda config, model, loss, x, y: _client_step(config, model, x),
)
