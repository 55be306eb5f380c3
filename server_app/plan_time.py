"""What a plan means on a device: what fits, how long it takes, and what to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leansplit.costs import Traffic
from leansplit.costs.device import DeviceProfile
from leansplit.costs.units import in_bytes, in_memory, in_words
from leansplit.server_app.methods import METHODS
from leansplit.server_app.planning import Plan


@dataclass(frozen=True)
class Timing:
    """Seconds that a plan takes on a device.

    Attributes:
        step_s: of a local step with its share of the round's traffic and round trips.
        run_s: of the whole run: rounds of clients that are all alike.
    """

    step_s: float
    run_s: float


@dataclass(frozen=True)
class Advice:
    """What to choose.

    Attributes:
        plan: the choice; None if nothing fits.
        reason: why, in a sentence or two.
    """

    plan: Plan | None
    reason: str


def direction_bytes(traffic: Traffic, direction: str) -> int:
    """Return the bytes of one direction."""
    return sum(size for (way, _), size in traffic.items() if way == direction)


def timing(plan: Plan, profile: DeviceProfile) -> Timing:
    """Return how long ``plan`` takes on clients that all have ``profile``.

    A participation computes, sends and receives in turn. The clients of a round do so at the same
    time, or one after the other where the method says so. Set-up and final update wait, too. What
    crosses once, such as initial weights, is shared out over the clients of a round.
    """
    step_s = sum(seconds_by_part(plan, profile).values()) / plan.steps_per_round
    return Timing(step_s, sum(_run_by_part(plan, profile).values()))


def advise(plans: Sequence[Plan], profile: DeviceProfile) -> Advice:
    """Choose among ``plans``: what fits, then the least time, traffic or memory that is known.

    Costs alone: how well a method learns at a cut is not in them. A control whose clients learn
    nothing always costs least, so it is chosen only where there is nothing else.
    """
    plans = [plan for plan in plans if METHODS[plan.method].client_order != "none"] or plans
    fitting = [plan for plan in plans if profile.fits(plan.step.peak_memory_bytes)]
    limit = "" if profile.memory_bytes is None else f" {in_memory(profile.memory_bytes)}"
    if not fitting:
        least = min(plans, key=lambda plan: plan.step.peak_memory_bytes)
        need = least.step.peak_memory_bytes
        share = max(least.step.peak_memory, key=lambda kind: least.step.peak_memory[kind])
        return Advice(
            None,
            f"nothing fits in{limit}: the least is {least} with "
            f"{in_memory(need)}, most of it {share.replace('_', ' ')}; a smaller batch, a "
            "lower precision of the frozen base or a smaller model would need less",
        )
    count = f"{len(fitting)} of {len(plans)} plans fit" + (f" in{limit}" if limit else "")
    if profile.is_timed:
        times = {id(plan): timing(plan, profile) for plan in fitting}
        best = min(fitting, key=lambda plan: times[id(plan)].run_s)
        parts = _run_by_part(best, profile)
        largest = max(parts, key=lambda part: parts[part])
        return Advice(
            best,
            f"{count}; of these {best} takes the least time for the run, "
            f"{in_words(times[id(best)].run_s)}, most of it {largest} "
            f"({100 * parts[largest] / sum(parts.values()):.0f} %). {_ACCURACY}",
        )
    best = min(fitting, key=lambda plan: sum(plan.traffic.values()))
    return Advice(
        best,
        f"{count}; of these {best} has the least traffic, "
        f"{in_bytes(sum(best.traffic.values()))} for the run. {_ACCURACY}",
    )


_ACCURACY = "How well it learns is not in these figures; compare runs, the frozen client among them"


def seconds_by_part(plan: Plan, profile: DeviceProfile) -> dict[str, float]:
    """Return the seconds of one more participation by what they are spent on."""
    flops = float(plan.step.flops * plan.steps_per_round)
    return _by_part(profile, flops, plan.client_traffic, plan.client_round_trips)


def _run_by_part(plan: Plan, profile: DeviceProfile) -> dict[str, float]:
    """Return the seconds of the run by what they are spent on."""
    at_once = 1 if plan.is_sequential else plan.participations / plan.rounds
    flops = plan.step.flops * plan.computed_steps / at_once
    return _by_part(profile, flops, plan.traffic, plan.round_trips, at_once)


def _by_part(
    profile: DeviceProfile, flops: float, traffic: Traffic, round_trips: int, sharing: float = 1
) -> dict[str, float]:
    """Return seconds by what they are spent on; so many clients share the traffic at once."""
    spent = {
        "computing": {"flops": flops},
        "sending": {"uplink_bytes": direction_bytes(traffic, "uplink") / sharing},
        "receiving": {"downlink_bytes": direction_bytes(traffic, "downlink") / sharing},
        "waiting for the network": {"round_trips": float(round_trips)},
    }
    nothing = {"flops": 0.0, "uplink_bytes": 0.0, "downlink_bytes": 0.0, "round_trips": 0.0}
    return {name: profile.seconds(**(nothing | part)) for name, part in spent.items()}
