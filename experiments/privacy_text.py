"""The privacy that a run spent, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from leansplit.server_app.results import RunResult

_WHOSE = {
    "smashed_data": "smashed data of one sample",
    "scalars": "scalars of one client",
    "one_sample": "both, of one sample",
}


def epsilon_text(epsilon: float | str | None) -> str:
    """Return epsilon to three digits; results spell infinity as text."""
    if epsilon is None:
        return "unknown (pip install 'leansplit[privacy]')"
    return "infinite" if epsilon in ("inf", float("inf")) else f"{float(epsilon):.3g}"


def privacy_rows(privacy: Mapping[str, Any]) -> dict[str, str]:
    """Return rows of a table: what -> epsilon; no rows where nothing was clipped or noised."""
    rows = {
        f"epsilon, {whose}": f"{epsilon_text(found['epsilon'])} ({found['uploads']:,} uploads)"
        for what, whose in _WHOSE.items()
        if (found := privacy.get(what))
    }
    if privacy:
        rows["not protected"] = ", ".join(privacy["unprotected"])
        if not privacy["is_secret"]:
            rows["noise"] = "reproducible: as if it were secret"
    return rows


def privacy_section(results: Iterable[RunResult]) -> list[str]:
    """Return the section of a summary; no lines if no run clipped or noised anything."""
    lines = [
        f"- {r.label}, seed {r.root_seed}: {'; '.join(f'{k}: {v}' for k, v in rows.items())}"
        for r in results
        if (rows := privacy_rows(r.privacy))
    ]
    if not lines:
        return []
    deltas = sorted({r.privacy["delta"] for r in results if r.privacy})
    explained = (
        f"Epsilon at delta {', '.join(f'{delta:g}' for delta in deltas)}, if one row is replaced "
        "by any other in all its uploads; no gain from sampling. See docs/audit.md."
    )
    return ["", "## Privacy", "", *lines, "", explained]
