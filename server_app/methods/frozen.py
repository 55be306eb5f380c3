"""The row of the frozen-client control."""

from __future__ import annotations

from collections.abc import Sequence, Set

from leansplit import reference
from leansplit.costs import SplitShape, frozen_traffic
from leansplit.federated import FrozenConfig
from leansplit.server_app.client_costs import forward_step
from leansplit.server_app.methods.spec import MethodSpec
from leansplit.strategies import FrozenClient


def samples_forwarded(
    config: FrozenConfig, shape: SplitShape, attendance: Sequence[Set[int]], samples: int
) -> int:
    """With ``features_once`` each participant runs all the samples it holds forward, once."""
    if not config.features_once:
        return samples
    return sum(shape.client_samples[m] for m in set().union(*attendance))


def round_trips(config: FrozenConfig, attendance: Sequence[Set[int]]) -> int:
    """With ``features_once`` nobody is asked twice, and rounds without news need no exchange."""
    if not config.features_once:
        return len(attendance)
    seen: set[int] = set()
    count = 0
    for cohort in attendance:
        count += bool(cohort - seen)
        seen |= cohort
    return count


FROZEN = MethodSpec(
    name="frozen",
    title="Frozen client",
    description="the control: a client model that never changes, a trained server",
    source="asked for by the papers' reviewers",
    client_order="none",
    averages_weights=False,
    config_type=FrozenConfig,
    strategy=FrozenClient,
    reference=reference.frozen,
    client_passes=lambda config: (1, 0),
    traffic=lambda config, shape, attendance, samples: frozen_traffic(
        shape, attendance, samples, features_once=config.features_once
    ),
    samples_forwarded=samples_forwarded,
    round_trips=round_trips,
    client_step=lambda config, model, loss, x, y: forward_step(model, x),
)
