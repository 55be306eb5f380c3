"""The row of HOSL."""

from __future__ import annotations

from leansplit import reference, strategies
from leansplit.federated import HOSLConfig
from leansplit.server_app.client_costs import probed_forward_step
from leansplit.server_app.methods.ho_sfl import client_passes, probed_traffic
from leansplit.server_app.methods.spec import MethodSpec

HOSL = MethodSpec(
    name="hosl",
    title="HOSL",
    description="zeroth-order clients that probe the end-to-end loss through the server",
    source="arXiv 2601.10940 (WiOpt 2026)",
    client_order="zeroth",
    averages_weights=False,
    reports_estimates=True,
    config_type=HOSLConfig,
    strategy=strategies.HOSL,
    reference=reference.hosl,
    client_passes=client_passes,
    traffic=probed_traffic,
    round_trips=lambda config, attendance: len(attendance) + 1,  # and the final update
    client_step=lambda config, model, loss, x, y: probed_forward_step(model, x, config),
)
