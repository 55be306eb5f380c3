"""What a round costs does not depend on how many clients there are that take no part in it."""

import sys

import pytest

from leansplit.experiments.launch import launch
from leansplit.server_app.methods import METHODS
from leansplit.zeroth_order import fresh_directions
from tests.whole_grid import WHOLE_GRID

ABLE = 12
SKELETONS = ("ho-sfl", "sflv2", "fsl-sage", "decomfl", "ho-fl", "fedavg")


@pytest.fixture
def fleet(tmp_path):
    """Of any number of clients, only the first twelve have the memory for a step."""

    def write(clients):
        rows = [f"8Mbit,8Mbit,10ms,1G,{'1GiB' if m < ABLE else '1kB'}" for m in range(clients)]
        table = tmp_path / f"{clients}.csv"
        table.write_text("\n".join(["uplink,downlink,latency,flops,memory", *rows]))
        return str(table)

    return write


def lines_run(config):
    """Return how many lines of leansplit's own the last two rounds of a run execute.

    Loops in comprehensions count as well: each turn of one is a line.
    """
    count = 0

    def within(frame, event, argument):
        nonlocal count
        count += event == "line"
        return within

    def trace(frame, event, argument):
        return within if frame.f_globals.get("__name__", "").startswith("leansplit") else None

    def on_progress(progress):
        sys.settrace(trace if config.rounds - 2 <= progress.round < config.rounds else None)

    before = sys.gettrace()
    try:
        with fresh_directions():
            outcome = launch(config, on_progress=on_progress)
    finally:
        sys.settrace(before)
    assert outcome.status == "completed", outcome.error
    return count


@pytest.mark.parametrize("method", METHODS if WHOLE_GRID else SKELETONS)
def test_a_round_does_not_look_at_clients_that_take_no_part(method, configure, fleet):
    counts = []
    for clients in (2 * ABLE, 10 * ABLE):
        keys = {"clients": clients, "workers": -1, "batch_size": 2, "partition": "iid"}
        keys |= {"rounds": 6, "evaluate_every": 6, "fleet.profile": fleet(clients)}
        keys |= {"replica_storage": "worker", "clients_per_node": "auto", "joint_passes": "off"}
        counts.append(lines_run(configure(method, "sgd", **keys)))
    assert counts[0] == counts[1] > 500
