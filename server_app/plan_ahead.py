"""Whether HO-SFL should fold its two exchanges into one (``probe_ahead``), on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leansplit.costs.device import DeviceProfile
from leansplit.costs.units import in_memory, in_words
from leansplit.server_app.config import RunConfig
from leansplit.server_app.plan_time import seconds_by_part, timing
from leansplit.server_app.planning import Plan, Planner

METHOD = "ho-sfl"


@dataclass(frozen=True)
class AheadAdvice:
    """One exchange against two, in seconds of a client's step.

    Attributes:
        probe_ahead: what to choose.
        latency_saved_s: by the exchange that is not waited for.
        download_saved_s: by the smashed gradient that does not come down.
        upload_added_s: by the smashed data of the probes, less the scalars that do not go up.
        reason: all of that in a sentence.
    """

    probe_ahead: bool
    latency_saved_s: float
    download_saved_s: float
    upload_added_s: float
    reason: str


def advise_probe_ahead(
    planner: Planner,
    configs: Mapping[str, RunConfig],
    plans: Sequence[Plan],
    profile: DeviceProfile,
) -> AheadAdvice | None:
    """Compare both forms of HO-SFL where its plan takes the least time, whichever was asked for.

    Args:
        planner: of the model.
        configs: method -> its configuration, at any cut.
        plans: of these configurations, at one cut or at several.
        profile: of the device.

    Returns:
        None where HO-SFL was not planned, or times cannot be told.
    """
    planned = [plan for plan in plans if plan.method == METHOD]
    if not planned or not profile.is_timed:
        return None
    planned = [p for p in planned if profile.fits(p.step.peak_memory_bytes)] or planned
    given = min(planned, key=lambda plan: timing(plan, profile).run_s)
    options = configs[METHOD].options
    is_ahead = bool(options.get("probe_ahead", False))
    other = planner.plan(
        dataclasses.replace(
            configs[METHOD],
            cut_layer=given.cut_layer,
            options={**options, "probe_ahead": not is_ahead},
        )
    )
    return compared(*((other, given) if is_ahead else (given, other)), profile)


def compared(apart: Plan, ahead: Plan, profile: DeviceProfile) -> AheadAdvice:
    """Return the advice on two plans of one setting: with two exchanges a round, and with one."""
    spent, folded = seconds_by_part(apart, profile), seconds_by_part(ahead, profile)
    saved = {part: seconds - folded[part] for part, seconds in spent.items()}
    latency, download = saved["waiting for the network"], saved["receiving"]
    added, need = -saved["sending"], ahead.step.peak_memory_bytes
    of_step = [timing(plan, profile).step_s for plan in (ahead, apart)]
    fits = profile.fits(need) or not profile.fits(apart.step.peak_memory_bytes)
    is_better = fits and of_step[0] < of_step[1]
    start = "set probe_ahead=true" if is_better else "leave probe_ahead=false"
    misfit = "" if fits else f", and would not fit: it needs {in_memory(need)}"
    return AheadAdvice(
        is_better,
        latency,
        download,
        added,
        f"{start} for {apart}: one exchange a round saves "
        f"{in_words(latency)} of latency and {in_words(download)} of download in a step, sends for "
        f"{in_words(added)} more, and takes {in_words(of_step[0])} instead of "
        f"{in_words(of_step[1])}{misfit}",
    )
