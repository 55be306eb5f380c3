"""The clock of a finished run, on cases that can be checked by hand."""

import dataclasses

import pandas as pd
import pytest

from leansplit.costs.fleet import FleetConfig
from leansplit.errors import UserError
from leansplit.server_app.config import run_config
from leansplit.server_app.results import LEDGER_COLUMNS, Run, RunResult
from leansplit.server_app.simulated_time import timed

HEADER = "flops, uplink, downlink, latency, memory\n"
ALIKE = "1G, 8Mbit, 8Mbit, 0.5s, 1kB\n"
SLOWER = "0.5G, 4Mbit, 8Mbit, 0.5s, 2kB\n"
MB = 1_000_000


@pytest.fixture
def fleet(tmp_path):
    """Two clients: the second computes and sends at half the rate of the first."""
    (tmp_path / "two.csv").write_text(HEADER + ALIKE + SLOWER)
    return FleetConfig(profile=str(tmp_path / "two.csv"))


def run_of(method, rows, *, rounds, evaluated=(), settings=(), **changes):
    """Return a run of two clients; ``rows`` of the ledger as (round, client, MB up, MB down)."""
    config = run_config(method, {"clients": 2, "cohort": 2, "batch_size": 4, **dict(settings)})
    ledger = [
        (t, m, direction, "weights", size * MB)
        for t, m, up, down in rows
        for direction, size in (("uplink", up), ("downlink", down))
    ]
    values = {
        "method": method,
        "label": method,
        "task": "digits",
        "status": "completed",
        "config": config.to_dict(),
        "config_hash": "0",
        "root_seed": 0,
        "started_at": "2026-01-01",
        "rounds_completed": rounds,
        "client_step_flops": 10**9,
        "client_peak_memory_bytes": 1500,
        "client_samples": [8, 2],
    }
    return Run(
        result=RunResult(**{**values, **changes}),
        rounds=pd.DataFrame({"round": list(evaluated)}),
        ledger=pd.DataFrame(ledger, columns=list(LEDGER_COLUMNS)),
    )


def test_a_run_by_hand(fleet):
    """Two local steps: client 0 computes 2e9 FLOPs, client 1, with half a batch, 1e9: 2 s each.

    Set-up 1 + 0.5 s each. Round 1: 2 + 1 + 2 + 0.5 = 5.5 and 2 + 2 + 2 + 0.5 = 6.5 s. Round 2:
    nobody. Round 3: client 0 as before. A last update: client 1, 1 + 0.5 s.
    """
    rows = [(0, 0, 0, 1), (0, 1, 0, 1), (1, 0, 1, 2), (1, 1, 1, 2), (3, 0, 1, 2), (4, 1, 0, 1)]
    run = run_of("fedavg", rows, rounds=3, evaluated=(0, 2, 3), settings={"local_steps": 2})
    told = timed(run, fleet)
    assert told.rounds["simulated_s"].tolist() == [1.5, 8.0, 13.5]
    assert told.rounds["client_s"].tolist() == [3.0, 15.0, 20.5]
    assert (told.result.simulated_s, told.result.client_s) == (15.0, 22.0)
    assert told.result.simulated_on == str(fleet)
    assert len(told.result.unfit_clients) == 1  # 1,500 B in 1 kB
    assert run.result.simulated_s is None


@pytest.mark.parametrize(("order", "seconds"), [("interleaved", 6.5), ("sequential", 10.5)])
def test_clients_in_turn_add_up(fleet, order, seconds):
    """1 + 1 + 1 + 1 = 4 and 1 + 2 + 1 + 1 = 5 s, with two round trips; all are set up at once."""
    rows = [(0, 0, 0, 1), (0, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, 1)]
    told = timed(run_of("sflv2", rows, rounds=1, settings={"client_order": order}), fleet)
    assert (told.result.simulated_s, told.result.client_s) == (seconds, 12.0)


@pytest.mark.parametrize(
    ("ahead", "sent", "seconds", "client_s"),
    [
        (False, [(0, 1, 1), (1, 1, 1)], 6.0, 10.0),  # 1 + 1 + 1 + 1 and 2 + 2 + 1 + 1 s
        (True, [(0, 3, 0), (1, 3, 0)], 8.5, 13.0),  # 1 + 3 + 0.5 and 2 + 6 + 0.5 s
    ],
)
def test_probing_ahead_waits_once_and_sends_more(fleet, ahead, sent, seconds, client_s):
    settings = {"probe_ahead": ahead, "batch_size": 2}
    rows = [(1, *each) for each in sent]
    told = timed(run_of("ho-sfl", rows, rounds=1, settings=settings), fleet)
    assert (told.result.simulated_s, told.result.client_s) == (seconds, client_s)


def test_features_that_cross_once_are_computed_for_all_samples(fleet):
    """Two batches and half a batch: 2 + 1 + 1 + 0.5 and 1 + 2 + 1 + 0.5 s."""
    rows = [(1, 0, 1, 1), (1, 1, 1, 1)]
    told = timed(run_of("frozen", rows, rounds=2, settings={"features_once": True}), fleet)
    assert (told.result.simulated_s, told.result.client_s) == (4.5, 9.0)


def test_clients_compute_what_their_boundary_asks_for(fleet):
    groups = [
        {"boundary": "none", "zeroth_order_parameters": 0, "clients": [0], "step_flops": 4 * 10**9},
        {"boundary": "cut", "zeroth_order_parameters": 9, "clients": [1], "step_flops": 10**9},
    ]
    rows = [(1, 0, 1, 1), (1, 1, 1, 1)]
    run = run_of("ho-fl", rows, rounds=1, settings={"local_steps": 1}, order_boundaries=groups)
    assert timed(run, fleet).result.client_s == (4 + 1 + 1 + 0.5) + (1 + 2 + 1 + 0.5)


def test_results_that_do_not_say_enough_are_refused(fleet):
    run = run_of("fedavg", [(1, 0, 1, 1)], rounds=1)
    for changes, message in [
        ({"engine": "plain"}, "nothing crossed"),
        ({"client_step_flops": None}, "no client step was measured"),
        ({"method": "unheard-of"}, "unknown method"),
    ]:
        result = dataclasses.replace(run.result, **changes)
        with pytest.raises(UserError, match=message):
            timed(dataclasses.replace(run, result=result), fleet)
