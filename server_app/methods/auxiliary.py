"""The rows of CSE-FSL, HERON-SFL and FSL-SAGE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from leansplit import reference
from leansplit.costs import SplitShape, Traffic, fsl_sage_traffic, local_loss_traffic
from leansplit.federated import (
    AuxiliaryMethodConfig,
    ClientData,
    CSEFSLConfig,
    FSLSAGEConfig,
    HeronSFLConfig,
    LocalLossConfig,
)
from leansplit.models import SplitModel
from leansplit.parameters import load_parameters_, num_trainable
from leansplit.reference.auxiliary import with_head as reference_head
from leansplit.server_app.auxiliary_costs import (
    imitated_client_step,
    local_loss_client_step,
    local_zeroth_order_client_step,
    with_head,
)
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import CSEFSL, FSLSAGE, HeronSFL


def auxiliary_elements(config: AuxiliaryMethodConfig, model: SplitModel, smashed: Tensor) -> int:
    """Count what is trained of the auxiliary head."""
    head = with_head(config, model, smashed).auxiliary
    return num_trainable(head)


def heron_passes(config: HeronSFLConfig) -> tuple[float, float]:
    """The central difference needs an unperturbed pass for uploads only.

    Passes are the client model's: probes of the head alone are none.
    """
    if config.frozen_client:
        return 1, 0
    zo = config.zeroth_order
    share = 0 if zo.estimator == "forward" else len(config.upload_steps) / config.local_steps
    return zo.num_forwards + share, 0


def clients_alone(
    config: LocalLossConfig, model: SplitModel, clients: Sequence[ClientData], trained: Any
) -> nn.Module:
    """Return client model and head as the plain loop leaves them."""
    local = reference_head(model, clients, config)
    load_parameters_(local, trained)
    return nn.Sequential(local.client, local.auxiliary)


def _local_loss_traffic(
    config: LocalLossConfig, shape: SplitShape, attendance: Any, samples: int
) -> Traffic:
    return local_loss_traffic(
        shape,
        attendance,
        samples,
        local_steps=config.local_steps,
        upload_period=config.upload_period,
        frozen_client=config.frozen_client,
    )


def _fsl_sage_traffic(
    config: FSLSAGEConfig, shape: SplitShape, attendance: Any, samples: int
) -> Traffic:
    return fsl_sage_traffic(
        shape,
        attendance,
        samples,
        local_steps=config.local_steps,
        upload_period=config.upload_period,
        alignment_period=config.alignment.period,
    )


CSE_FSL = MethodSpec(
    name="cse-fsl",
    title="CSE-FSL",
    description="first-order clients with an auxiliary head and a local loss",
    source="arXiv 2507.15816",
    client_order="first",
    averages_weights=True,
    config_type=CSEFSLConfig,
    strategy=CSEFSL,
    reference=reference.cse_fsl,
    client_passes=lambda config: (1, 0 if config.frozen_client else 1),
    traffic=_local_loss_traffic,
    auxiliary_elements=auxiliary_elements,
    client_step=local_loss_client_step,
    clients_alone=clients_alone,
)
HERON_SFL = replace(
    CSE_FSL,
    name="heron-sfl",
    title="HERON-SFL",
    description="zeroth-order clients with an auxiliary head and a local loss",
    source="arXiv 2601.09076",
    client_order="zeroth",
    reports_estimates=True,
    config_type=HeronSFLConfig,
    strategy=HeronSFL,
    reference=reference.heron_sfl,
    client_passes=heron_passes,
    client_step=local_zeroth_order_client_step,
)
FSL_SAGE = replace(
    CSE_FSL,
    name="fsl-sage",
    title="FSL-SAGE",
    description="first-order clients; a head aligned by the server imitates its gradient",
    source="arXiv 2505.23182 (ICML 2025)",
    config_type=FSLSAGEConfig,
    client_passes=lambda config: (1, 1),
    strategy=FSLSAGE,
    reference=reference.fsl_sage,
    traffic=_fsl_sage_traffic,
    client_step=imitated_client_step,
    clients_alone=lambda *_: None,
)
