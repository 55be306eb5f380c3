"""The row of HO-SFL."""

from __future__ import annotations

from leansplit import reference
from leansplit.costs import ho_sfl_traffic
from leansplit.federated import HOSFLConfig
from leansplit.server_app.client_costs import zeroth_order_step
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import HOSFL


def client_passes(config: HOSFLConfig) -> tuple[float, float]:
    """The anchor z is a forward pass of its own; the forward estimator reuses it."""
    is_forward = config.zeroth_order.estimator == "forward"
    return config.zeroth_order.num_forwards + (0 if is_forward else 1), 0


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
    traffic=lambda config, shape, attendance, samples: ho_sfl_traffic(
        shape, attendance, samples, config.zeroth_order.num_perturbations
    ),
    round_trips=lambda config, attendance: 2 * len(attendance) + 1,  # and the final update
    client_step=lambda config, model, loss, x, y: zeroth_order_step(model, x, config),
)
