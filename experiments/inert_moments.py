"""Optimizers whose moments do nothing, because they never live to a second step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leansplit.server_app.methods import METHODS, is_used


def has_inert_moments(config: Mapping[str, Any]) -> bool:
    """Say whether a run's clients use momentum or AdamW on moments that every step begins anew.

    Momentum then changes nothing, and AdamW is a step of the learning rate along the gradient's
    signs: a comparison of the two would be one of plain SGD with sign SGD.

    Args:
        config: the configuration as results hold it.
    """
    method, client = str(config.get("method")), config.get("client", {})
    if method not in METHODS or not is_used(method, "client.lr"):
        return False
    has_moments = client.get("name") == "adamw" or bool(client.get("momentum"))
    spec, options = METHODS[method], config.get("options", {})
    default = spec.default("local_steps") if "local_steps" in spec.options else 1
    ends_with_step = client.get("lifetime") == "batch" or (
        client.get("lifetime") == "round" and options.get("local_steps", default) == 1
    )
    return has_moments and ends_with_step


ADVICE = (
    "moments of the client's optimizer end with every step, so momentum does nothing and AdamW "
    "follows the gradient's signs; set client.lifetime to run, or take more local steps"
)
