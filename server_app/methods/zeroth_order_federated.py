"""The rows of DeComFL and FedZO."""

from __future__ import annotations

from leansplit import reference
from leansplit.costs import decomfl_traffic, fedzo_traffic
from leansplit.federated import DeComFLConfig, FedZOConfig
from leansplit.server_app.client_costs import loss_probe_step
from leansplit.server_app.methods.ho_sfl import catch_up_sizes
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import DeComFL, FedZO

DECOMFL = MethodSpec(
    name="decomfl",
    title="DeComFL",
    description="zeroth-order federated learning without a cut; only seeds and scalars cross",
    source="DeComFL (ICLR 2025)",
    is_split=False,
    client_order="zeroth",
    averages_weights=False,
    reports_estimates=True,
    config_type=DeComFLConfig,
    strategy=DeComFL,
    reference=reference.decomfl,
    client_passes=lambda config: (config.zeroth_order.num_forwards, 0),
    traffic=lambda config, shape, attendance, samples: decomfl_traffic(
        shape,
        attendance,
        config.zeroth_order.num_perturbations,
        config.local_steps,
        catch_up_sizes(config, shape.full_elements),
    ),
    round_trips=lambda config, attendance: len(attendance) + 1,  # and the final update
    client_step=lambda config, model, loss, x, y: loss_probe_step(model, loss, x, y, config),
)
FEDZO = MethodSpec(
    name="fedzo",
    title="FedZO",
    description="the whole model trained by zeroth-order steps at the client and averaged",
    source="arXiv 2201.09531 (TSP 2022)",
    is_split=False,
    client_order="zeroth",
    averages_weights=False,  # it does, but in evaluation mode running statistics never move
    reports_estimates=True,
    config_type=FedZOConfig,
    strategy=FedZO,
    reference=reference.fedzo,
    client_passes=lambda config: (config.zeroth_order.num_forwards, 0),
    traffic=lambda config, shape, attendance, samples: fedzo_traffic(shape, attendance),
    client_step=lambda config, model, loss, x, y: loss_probe_step(model, loss, x, y, config),
)
