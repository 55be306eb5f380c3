"""Who counts its own costs, and what becomes of the reports."""

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict

from leansplit.strategies.client_watch import ClientWatch
from leansplit.strategies.flower_records import (
    CostReport,
    pack,
    take_choices,
    take_costs,
    take_watch,
    unpack,
    with_costs,
    with_watch,
)
from leansplit.strategies.running import RoundReport
from leansplit.zeroth_order import JointPassChoice

REPORT = CostReport(flops=10, repeated_flops=4, peak_memory_bytes=7, batches={0: (2, 3)})
NEXT = CostReport(flops=5, repeated_flops=0, peak_memory_bytes=9, batches={0: (2, 3), 1: (1, 3)})


def watch_of(sizes):
    watch, grid = ClientWatch(), SimpleNamespace(watch=None)
    plan = SimpleNamespace(config=SimpleNamespace(batch_size=8))
    watch.on_set_up(SimpleNamespace(num_samples=sizes, plan=plan, grid=grid))
    assert grid.watch is watch
    return watch


def end(watch, round, failures=()):
    assert watch.on_round(RoundReport(round, 0, None, 1, dict.fromkeys(failures, "lost")))


def test_the_first_client_asked_counts_at_its_second_participation():
    watch = watch_of({0: 8, 1: 8, 2: 8})
    assert [watch.on_asked(1, {m}) for m in (1, 2)] == [None, None]
    end(watch, 1)
    assert [watch.on_asked(2, {m}) for m in (0, 1)] == [None, None]  # 0 is first, and is new
    end(watch, 2)
    assert [watch.on_asked(3, {m}) for m in (1, 2, 1)] == [1, None, 1]
    watch.on_report(2, REPORT)  # late, from another round
    watch.on_report(3, REPORT)
    watch.on_report(3, NEXT)
    end(watch, 3)
    found = watch.found
    assert (found.client_id, found.round, found.flops, found.repeated_flops) == (1, 3, 15, 4)
    assert found.peak_memory_bytes == 9 and found.batches == ((2, 3), (1, 3))
    assert watch.on_asked(4, {1}) is None  # once in a run


def test_a_client_that_failed_or_has_too_few_samples_does_not_count():
    watch = watch_of({0: 7, 1: 8})
    for round, failures in ((1, ()), (2, ()), (3, (1,))):
        asked = watch.on_asked(round, {0 if round == 2 else 1})
        assert asked == (1 if round == 3 else None)
        if asked is not None:
            watch.on_report(round, REPORT)
        end(watch, round, failures)
    assert watch.found is None
    assert watch.on_asked(4, {0, 1}) is None  # client 0 is first: no whole batch


def test_a_client_that_lists_more_batches_than_a_round_has_is_not_believed():
    watch = watch_of({0: 8})
    endless = CostReport(1, 0, 1, {step: (1, step) for step in range(1000)})
    for round, report in ((1, None), (2, None), (3, endless), (4, REPORT)):
        if watch.on_asked(round, {0}) is not None:
            watch.on_report(round, report)
        end(watch, round)
    assert watch.found.round == 4


def test_the_wish_and_the_report_leave_messages_as_they_were():
    content = pack({3: b"payload"})
    asked = with_watch(content, 3)
    assert take_watch(asked) == 3 and asked == content and take_watch(content) is None
    reply = with_costs(pack({3: b"payload"}), REPORT)
    assert take_costs(reply) == REPORT and reply == content
    assert unpack(reply) == {3: b"payload"}


HUGE = "9" * 4300  # Python reads it, and writes no sum of two such


def report_of(**changed):
    fields = {"flops": "1", "repeated_flops": "1", "peak_memory_bytes": "1"} | changed
    fields = {"batches": '{"0": [2]}'} | fields
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


UNREADABLE = [
    *("", "[]", '{"flops": -1}', '{"flops": "x"}', "NaN"),
    *(report_of(**{name: HUGE}) for name in ("flops", "repeated_flops", "peak_memory_bytes")),
    *(report_of(batches=wrong) for wrong in ('{"0": [-2]}', f'{{"0": {[2] * 99}}}', '{"-1": [2]}')),
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_report_that_cannot_be_read_is_none(text):
    def taken(text):
        return take_costs(RecordDict({"leansplit-costs": ConfigRecord({"json": text})}))

    assert taken(text) is None and taken(report_of()) == CostReport(1, 1, 1, {0: (2,)})


@pytest.mark.parametrize(
    "wrong", [((8,) * 1000, 2, 1.5), ((8, -1), 2, 1.5), ((8,), 10**400, 1.5), ((8,), 2, math.nan)]
)
def test_of_choices_only_those_are_taken_that_a_line_can_tell(wrong):
    right = JointPassChoice((8, 1, 4), 2, 1.5)
    text = json.dumps([dict(zip(asdict(right), wrong, strict=True)), asdict(right)])
    content = RecordDict({"leansplit-joint-passes": ConfigRecord({"json": text})})
    assert take_choices(content) == [right]
