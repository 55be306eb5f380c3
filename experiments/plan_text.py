"""Plans as tables for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table

from leansplit.allocation import MEMORY_KINDS
from leansplit.costs import Traffic
from leansplit.costs.device import DeviceProfile
from leansplit.costs.units import MIB, in_bytes, in_memory, in_words, with_prefix
from leansplit.server_app.plan_time import Advice, direction_bytes, timing
from leansplit.server_app.planning import Plan
from leansplit.server_app.published import ByConvention


def plan_table(plans: Sequence[Plan], profile: DeviceProfile, title: str) -> Table:
    """Return a table with a column for each plan: a step, a participation and the run."""
    table = Table(title=title, title_justify="left")
    table.add_column("client")
    for plan in plans:
        table.add_column(str(plan), justify="right")

    def row(name: str, show: Callable[[Plan], str]) -> None:
        table.add_row(name, *(show(plan) for plan in plans))

    row("FLOPs of a step", lambda p: f"{with_prefix(p.step.flops)}FLOP")
    row("  by the 3 x rule", lambda p: f"{with_prefix(p.step.rule_flops)}FLOP")
    row("peak memory of a step", lambda p: in_memory(p.step.peak_memory_bytes))
    for kind in MEMORY_KINDS:
        held = [plan.step.peak_memory.get(kind, 0) for plan in plans]
        if any(held):
            table.add_row(f"  {kind.replace('_', ' ')}", *map(in_memory, held))
    if profile.memory_bytes is not None:
        row("  fits", lambda p: "yes" if profile.fits(p.step.peak_memory_bytes) else "no")
    row("local steps of a round", lambda p: f"{p.steps_per_round:,}")
    if any(plan.steps_per_round > 1 for plan in plans):
        row("traffic of a step, one client", lambda p: in_bytes(_of_step(p)))
    row("traffic of a round, one client", lambda p: in_bytes(sum(p.client_traffic.values())))
    _add_kinds(table, plans, [plan.client_traffic for plan in plans])
    row("round trips of a round", lambda p: f"{p.client_round_trips:,}")
    table.add_section()
    row("rounds of the run", lambda p: f"{p.rounds:,}")
    if any(plan.num_left_out for plan in plans):
        row("clients left out: memory", lambda p: f"{p.num_left_out:,}")
    row("traffic of the run, all clients", lambda p: in_bytes(sum(p.traffic.values())))
    _add_kinds(table, plans, [plan.traffic for plan in plans])
    row("round trips of the run", lambda p: f"{p.round_trips:,}")
    if profile.is_timed:
        row("time of a step", lambda p: in_words(timing(p, profile).step_s))
        row("time of the run", lambda p: in_words(timing(p, profile).run_s))
    return table


def sweep_table(plans: Sequence[Plan | None], cuts: Sequence[str], profile: DeviceProfile) -> Table:
    """Return a table of one method with a row for each cut."""
    [first, *_] = [plan for plan in plans if plan is not None]
    table = Table(title=first.title, title_justify="left")
    columns = ["cut", "trained", "FLOPs / step", "3 x rule", "peak", "up / round", "down / round"]
    columns += ["run"]
    columns += ["fits"] if profile.memory_bytes is not None else []
    columns += ["step takes", "run takes"] if profile.is_timed else []
    for column in columns:
        side: JustifyMethod = "left" if column == "cut" else "right"
        table.add_column(column, justify=side, overflow="fold")  # a narrow terminal loses nothing
    for cut, plan in zip(cuts, plans, strict=True):
        if plan is None:
            table.add_row(cut, *["–"] * (len(columns) - 1))
            continue
        cells = [
            cut,
            f"{plan.shape.client_elements:,}",
            f"{with_prefix(plan.step.flops)}FLOP",
            f"{with_prefix(plan.step.rule_flops)}FLOP",
            in_memory(plan.step.peak_memory_bytes),
            in_bytes(direction_bytes(plan.client_traffic, "uplink")),
            in_bytes(direction_bytes(plan.client_traffic, "downlink")),
            in_bytes(sum(plan.traffic.values())),
        ]
        if profile.memory_bytes is not None:
            cells.append("yes" if profile.fits(plan.step.peak_memory_bytes) else "no")
        if profile.is_timed:
            times = timing(plan, profile)
            cells += [in_words(times.step_s), in_words(times.run_s)]
        table.add_row(*cells)
    return table


def convention_table(plans: Sequence[Plan], found: Sequence[ByConvention]) -> Table:
    """Return plans as HERON-SFL's Table II prints them, beside the exact figures."""
    table = Table(
        "method",
        "FLOPs",
        "exact",
        "memory",
        "without copies",
        "exact",
        "traffic",
        "exact",
        title="By the conventions of HERON-SFL's Table II (docs/accounting.md)",
        title_justify="left",
    )
    for plan, by in zip(plans, found, strict=True):
        table.add_row(
            plan.title,
            f"{with_prefix(by.flops)}MAC",
            f"{with_prefix(plan.step.flops)}FLOP",
            in_memory(by.memory_bytes),
            in_memory(by.memory_without_copies),
            in_memory(plan.step.peak_memory_bytes),
            f"{by.traffic_bytes / MIB / 1024:,.2f} GiB",
            in_bytes(sum(plan.traffic.values())),
        )
    return table


def plan_values(plan: Plan, profile: DeviceProfile) -> dict[str, Any]:
    """Return a plan as plain values; units are in the names."""
    values: dict[str, Any] = {
        "method": plan.method,
        "cut_layer": plan.cut_layer,
        "client_parameters": plan.shape.client_elements,
        "auxiliary_parameters": plan.shape.auxiliary_elements,
        "step_flops": plan.step.flops,
        "step_flops_by_3x_rule": plan.step.rule_flops,
        "peak_memory_bytes": plan.step.peak_memory_bytes,
        "peak_memory": {f"{kind}_bytes": n for kind, n in plan.step.peak_memory.items()},
        "local_steps": plan.steps_per_round,
        "rounds": plan.rounds,
        "clients_left_out": plan.num_left_out,
        "round_trips": plan.round_trips,
        "round_trips_of_a_round": plan.client_round_trips,
        "traffic": _by_kind(plan.traffic),
        "traffic_of_a_client_and_round": _by_kind(plan.client_traffic),
        "traffic_bytes_of_a_client_and_step": _of_step(plan),
        "uplink_bytes": direction_bytes(plan.traffic, "uplink"),
        "downlink_bytes": direction_bytes(plan.traffic, "downlink"),
    }
    if profile.memory_bytes is not None:
        values["fits"] = profile.fits(plan.step.peak_memory_bytes)
    if profile.is_timed:
        times = timing(plan, profile)
        values |= {"step_s": times.step_s, "run_s": times.run_s}
    return values


def advice_values(advice: Advice) -> dict[str, Any]:
    """Return a recommendation as plain values."""
    plan = advice.plan
    return {
        "method": plan.method if plan else None,
        "cut_layer": plan.cut_layer if plan else None,
        "reason": advice.reason,
    }


def _of_step(plan: Plan) -> float:
    """Return the bytes of one local step of a client, its share of the round's."""
    return sum(plan.client_traffic.values()) / plan.steps_per_round


def _add_kinds(table: Table, plans: Sequence[Plan], traffics: Sequence[Traffic]) -> None:
    for key in dict.fromkeys(key for traffic in traffics for key in traffic):
        direction, kind = key
        name = f"  {'up' if direction == 'uplink' else 'down'}: {kind.replace('_', ' ')}"
        table.add_row(name, *(in_bytes(traffic.get(key, 0)) for traffic in traffics))


def _by_kind(traffic: Traffic) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (direction, kind), num_bytes in traffic.items():
        found.setdefault(kind, {})[f"{direction}_bytes"] = num_bytes
    return found
