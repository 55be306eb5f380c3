"""Every method as one row: what the command line, comparisons and tests know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from leansplit import reference
from leansplit.costs import (
    SplitShape,
    Traffic,
    fedavg_traffic,
    frozen_traffic,
    ho_sfl_traffic,
    splitfed_traffic,
)
from leansplit.federated import (
    FedAvgConfig,
    FrozenConfig,
    HOSFLConfig,
    MethodConfig,
    SplitFedConfig,
)
from leansplit.federated.optimizers import Lifetime
from leansplit.first_order import Loss
from leansplit.models import SplitModel
from leansplit.server_app.client_costs import (
    first_order_step,
    forward_step,
    full_model_step,
    zeroth_order_step,
)
from leansplit.server_app.config import RunConfig
from leansplit.strategies import HOSFL, FedAvg, FrozenClient, SplitFedV1, SplitFedV2
from leansplit.strategies.running import RunningStrategy


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One method."""

    name: str
    """Name on the command line."""
    title: str
    """Name in tables and plots."""
    description: str
    """One line."""
    source: str
    """The paper."""
    client_order: str
    """What a client computes: ``zeroth``, ``first`` or ``none``."""
    averages_weights: bool
    """Whether client models are averaged, which running batch statistics would not survive."""
    one_client_per_node: bool = False
    """Whether a SuperNode may host one client only."""
    unused: tuple[str, ...] = ()
    """Keys, or sections ending in a dot, that the method does not read."""
    client_lifetime: Lifetime
    """Default lifetime of the client optimizer's moments."""
    server_lifetime: Lifetime
    """Default lifetime of the server optimizer's moments."""
    config: Callable[[RunConfig], MethodConfig]
    """Picks the method's settings out of a run's."""
    strategy: Callable[..., RunningStrategy]
    """(model, loss, config, **options) -> strategy."""
    reference: Callable[..., None]
    """The plain loop."""
    client_passes: Callable[[RunConfig], tuple[int, int]]
    """(forward, backward) passes of a client for each sample it processes."""
    traffic: Callable[[RunConfig, SplitShape, Sequence[Set[int]], int], Traffic]
    """(run, sizes, attendance, samples) -> the closed formula that the ledger is held to."""
    client_step: Callable[[RunConfig, SplitModel, Loss, Tensor, Tensor], Callable[[], object]]
    """(run, model, loss, inputs, labels) -> one step of a client, to be measured."""


def _common(run: RunConfig) -> dict[str, Any]:
    return {"cohort_size": run.cohort, "batch_size": run.batch_size, "root_seed": run.seed}


def _ho_sfl(run: RunConfig) -> HOSFLConfig:
    return HOSFLConfig(
        **_common(run),
        zeroth_order=run.probe,
        client_optimizer=run.client,
        server_optimizer=run.server,
        paper_code_scaling=run.paper_code_scaling,
    )


def _splitfed(run: RunConfig) -> SplitFedConfig:
    return SplitFedConfig(
        **_common(run),
        local_steps=run.local_steps,
        client_optimizer=run.client,
        server_optimizer=run.server,
        client_order=run.client_order,
    )


def _fedavg(run: RunConfig) -> FedAvgConfig:
    return FedAvgConfig(**_common(run), local_steps=run.local_steps, client_optimizer=run.client)


def _frozen(run: RunConfig) -> FrozenConfig:
    return FrozenConfig(**_common(run), server_optimizer=run.server)


def _fedavg_strategy(model: SplitModel, loss: Loss, config: FedAvgConfig, **options: Any) -> FedAvg:
    return FedAvg(model, config, **options)  # FedAvg's server never evaluates the loss


def _zeroth_order_passes(run: RunConfig) -> tuple[int, int]:
    # The anchor z is a forward pass of its own; the forward estimator reuses it.
    is_forward = run.probe.estimator == "forward"
    return run.probe.num_forwards + (0 if is_forward else 1), 0


METHODS: Mapping[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec(
            name="ho-sfl",
            unused=("local_steps", "client_order"),
            title="HO-SFL",
            description="zeroth-order clients against the server's cut gradient; no model sync",
            source="arXiv 2603.14773 (ICML 2026)",
            client_order="zeroth",
            averages_weights=False,
            client_lifetime="run",
            server_lifetime="run",
            config=_ho_sfl,
            strategy=HOSFL,
            reference=reference.ho_sfl,
            client_passes=_zeroth_order_passes,
            traffic=lambda run, shape, attendance, samples: ho_sfl_traffic(
                shape, attendance, samples, run.probe.num_perturbations
            ),
            client_step=lambda run, model, loss, x, y: zeroth_order_step(model, x, run.probe),
        ),
        MethodSpec(
            name="sflv1",
            unused=("probe.", "paper_code_scaling", "client_order"),
            title="SFLV1",
            description="first-order split federated learning, one server replica for each client",
            source="Thapa et al., AAAI 2022",
            client_order="first",
            averages_weights=True,
            client_lifetime="round",
            server_lifetime="run",
            config=_splitfed,
            strategy=SplitFedV1,
            reference=reference.splitfed_v1,
            client_passes=lambda run: (1, 1),
            traffic=lambda run, shape, attendance, samples: splitfed_traffic(
                shape, attendance, samples
            ),
            client_step=lambda run, model, loss, x, y: first_order_step(model, x, run.client),
        ),
        MethodSpec(
            name="sflv2",
            unused=("probe.", "paper_code_scaling"),
            title="SFLV2",
            description="first-order split federated learning, one server model in turn",
            source="Thapa et al., AAAI 2022",
            client_order="first",
            averages_weights=True,
            client_lifetime="round",
            server_lifetime="run",
            config=_splitfed,
            strategy=SplitFedV2,
            reference=reference.splitfed_v2,
            client_passes=lambda run: (1, 1),
            traffic=lambda run, shape, attendance, samples: splitfed_traffic(
                shape, attendance, samples
            ),
            client_step=lambda run, model, loss, x, y: first_order_step(model, x, run.client),
        ),
        MethodSpec(
            name="fedavg",
            one_client_per_node=True,
            unused=("probe.", "paper_code_scaling", "client_order", "server."),
            title="FedAvg",
            description="the whole model trained at the client and averaged by Flower",
            source="McMahan et al., AISTATS 2017",
            client_order="first",
            averages_weights=True,
            client_lifetime="round",
            server_lifetime="run",
            config=_fedavg,
            strategy=_fedavg_strategy,
            reference=reference.fedavg,
            client_passes=lambda run: (1, 1),
            traffic=lambda run, shape, attendance, samples: fedavg_traffic(shape, attendance),
            client_step=lambda run, model, loss, x, y: full_model_step(
                model, loss, x, y, run.client
            ),
        ),
        MethodSpec(
            name="frozen",
            unused=("probe.", "paper_code_scaling", "client_order", "local_steps", "client."),
            title="Frozen client",
            description="the control: a client model that never changes, a trained server",
            source="asked for by the papers' reviewers",
            client_order="none",
            averages_weights=False,
            client_lifetime="run",
            server_lifetime="run",
            config=_frozen,
            strategy=FrozenClient,
            reference=reference.frozen,
            client_passes=lambda run: (1, 0),
            traffic=lambda run, shape, attendance, samples: frozen_traffic(
                shape, attendance, samples
            ),
            client_step=lambda run, model, loss, x, y: forward_step(model, x),
        ),
    )
}
"""Name -> method, in the order in which methods are listed."""


def is_used(method: str, key: str) -> bool:
    """Say whether ``method`` reads the configuration key ``key``."""
    return not any(
        key.startswith(unused) if unused.endswith(".") else key == unused
        for unused in METHODS[method].unused
    )
